"""Stages as worker processes, on this machine or several, started and watched by Ray.

`backend` is the front and `engine` one run of it. Behind them are `driver/`, the caller's side; `worker/`, what runs in
the workers; and `cluster/`, Ray itself. Both sides know `link_specs` (what travels where) and `plain` (what crosses
between processes). Nothing here imports Ray before a backend is made.
"""

from .backend import RayBackend, RayEngine
from .cluster import read_token
from .status import BackendStatus, WorkerStatus
from .worker_handle import WorkerError

__all__ = ["BackendStatus", "RayBackend", "RayEngine", "WorkerError", "WorkerStatus", "read_token"]
