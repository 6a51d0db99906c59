"""Stages as worker processes, on this machine or several, started and watched by Ray.


Nothing here imports Ray before a backend is made.

The caller's side: `backend` (the front), `engine` (one run), `video` and `run` (across losses, and without), `crew`
(the workers), `hold` and `member` (what must be given back), `desk` and `codec` (encoders and VAE), `cluster` (Ray
itself), `keeper` (its thread), `joining` (a cluster that somebody else has started), `calls` (what Ray is asked),
`faults`; `turns`, `pause`, `idle` and `status` (control); `register` and `processes` (all workers on this machine).
The worker's side: `boot` (how one comes to life), `worker`, `codec_worker`, `shift` (one run of one stage), `links`
(between stages) and `payloads` (how tensors travel over them), `snapshots` (what a lost stage is restored from),
`trouble` (what its exceptions mean).
Both: `routes` (what travels where) and `plain` (what crosses between processes).
"""

from .backend import RayBackend
from .engine import RayEngine
from .faults import WorkerError
from .joining import read_token
from .status import BackendStatus, WorkerStatus

__all__ = ["BackendStatus", "RayBackend", "RayEngine", "WorkerError", "WorkerStatus", "read_token"]
