"""Stages as worker processes, on this machine or several, started and watched by Ray.

`backend` has the public classes. The driver's side is `pool` (worker processes), `worker_handle`, `monitor` (one run),
`queue`, `status` and `encoders`; the workers' side is `worker`, `stage_run`, `links`, `snapshots` and `codec_worker`.
Both sides share `topology` (which stage runs and sends what) and `wire` (messages and their encoding). `cluster` starts
or joins Ray, `cluster_token` says who may, `cluster_node` is a machine's part of a cluster, `registry` lists worker
processes. Nothing here imports Ray before a backend is made, and nothing at all before it is asked for: the registry is
read without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import RayBackend, RayEngine
    from .cluster_token import check_workflow_address, read_token
    from .status import BackendStatus, WorkerStatus
    from .worker_handle import WorkerError

__all__ = [
    "BackendStatus",
    "RayBackend",
    "RayEngine",
    "WorkerError",
    "WorkerStatus",
    "check_workflow_address",
    "read_token",
]
_HOMES = {
    "BackendStatus": "status",
    "RayBackend": "backend",
    "RayEngine": "backend",
    "WorkerError": "worker_handle",
    "WorkerStatus": "status",
    "check_workflow_address": "cluster_token",
    "read_token": "cluster_token",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
