"""Stages as worker processes, on this machine or several, started and watched by Ray.

`backend` is the front and `engine` one run of it. Behind them are `driver/`, the caller's side; `worker/`, what runs in
the workers; and `cluster/`, Ray itself. Both sides know `routes` (what travels where) and `plain` (what crosses between
processes). Nothing here imports Ray before a backend is made.
"""

from .backend import RayBackend
from .cluster.joining import read_token
from .driver.faults import WorkerError
from .driver.status import BackendStatus, WorkerStatus
from .engine import RayEngine

__all__ = ["BackendStatus", "RayBackend", "RayEngine", "WorkerError", "WorkerStatus", "read_token"]
