"""Stages as worker processes, started and watched by Ray. Nothing here imports Ray before a backend is made.

The caller's side: `backend` (the front), `engine` (one run), `crew` (the workers), `cluster` (Ray itself), `faults`.
The worker's side: `boot` (how one comes to life), `worker`, `shift` (one run of one stage), `links` (between stages),
`trouble` (what its exceptions mean).
Both: `routes` (what travels where) and `plain` (what crosses between processes).
"""

from .backend import RayBackend
from .engine import RayEngine
from .faults import WorkerError

__all__ = ["RayBackend", "RayEngine", "WorkerError"]
