"""How a worker comes to life: a small class that is pickled by value and imports the library under its own name."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

_PACK = Path(__file__).parents[4]
"""The folder that holds `liveavatar`."""
STAGES = "liveavatar.engines.ray.worker.stage_worker:Worker"
_CALLS = 16
"""Calls a worker answers side by side: one asks for news and waits, others allow blocks or stop."""
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def start_worker(ray: Any, machine: str, log: str, threads: int, alone: bool, works: str = STAGES) -> Any:
    """A worker process, as the handle of its Ray actor.

    Args:
        machine: id of the one where it works.
        log: the file that gets all it says; "" for one in a folder of its own, on another machine.
        threads: CPU threads, before a duty sets its own.
        alone: whether it meets workers of this machine only.
        works: "module:class" of what it does.
    """

    class StageWorker:
        """A worker, seen from outside. It raises nothing, because a caller may not know its classes."""

        def __init__(self, log: str, works: str):
            import faulthandler
            import importlib
            import logging
            import os
            import pathlib
            import sys
            import tempfile

            if not log:
                short = "/tmp" if os.name == "posix" and os.access("/tmp", os.W_OK) else None
                log = os.path.join(tempfile.mkdtemp(prefix=f"la-{os.getpid()}-", dir=short), "worker.log")  # noqa: PTH118
            self._file = pathlib.Path(log).open("ab", buffering=0)  # noqa: SIM115
            for stream in (1, 2):
                os.dup2(self._file.fileno(), stream)
            faulthandler.enable(self._file)
            form = "%(asctime)s %(levelname)s %(message)s"
            logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form, force=True)
            self._worker = None
            try:
                # Pickled by value, this class has no package of its own to import from relatively.
                module, _, name = works.partition(":")
                self._worker = getattr(importlib.import_module(module), name)(log)
                self._fault_of = importlib.import_module("liveavatar.engines.ray.worker.trouble").fault_of
            except ImportError as error:
                self._missing = str(error)
                logging.exception("the library is missing")

        def call(self, name: str, *given: Any) -> tuple[str, Any]:
            """("ok", what the worker's method returns), or ("refused" | "failed" | "link", (what, nearest))."""
            import logging

            if self._worker is None:
                install = "Install the same version of this library, with its requirements, on that machine."
                return "refused", (f"the library is not there or not whole ({self._missing})", install)
            plain = []
            for item in given:
                if isinstance(item, tuple) and len(item) == 2 and item[0] in ("ok", "refused", "failed", "link"):
                    if item[0] != "ok":
                        return "link", ("got nothing from another stage", "")
                    item = item[1]
                plain.append(item)
            try:
                return "ok", getattr(self._worker, name)(*plain)
            except BaseException as error:
                logging.getLogger("liveavatar.worker").exception("%s failed", name)
                fault = self._fault_of(error)
                return fault.kind, (fault.what, fault.nearest)

    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": _CALLS, "max_restarts": 0, "max_task_retries": 0}
    options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(machine, soft=False)
    own = _runtime_env(threads, alone, here=bool(log))
    return ray.remote(StageWorker).options(runtime_env=own, **options).remote(log, works)


def _runtime_env(threads: int, alone: bool, here: bool) -> dict[str, Any]:
    """Ray's runtime environment of a worker; `here`: whether it works on this machine."""
    own: dict[str, Any] = {"env_vars": environment(dict(os.environ), threads, alone)}
    if here and os.name == "posix" and shlex.quote(sys.executable) != sys.executable:
        own["py_executable"] = shlex.quote(sys.executable)  # Ray writes the path into a shell's command line as it is
    return own


def environment(own: dict[str, str], threads: int, alone: bool = True) -> dict[str, str]:
    """What a worker's environment has that differs from this process's, or from that of its machine.

    This library comes before all else on the path; where its folder does not exist, on another machine, the library
    that is installed there is found. Workers that are alone on one machine meet on loopback, also for NCCL. An
    allocator that the host chose for itself is not passed on, because it must be known before CUDA starts and is not
    for workers to share; all devices stay visible. A run brings threads of its own, and an arena for each would keep
    what they freed: 40 to 50 MB of a worker, for nothing.
    """
    path = os.pathsep.join([str(_PACK), *filter(None, [own.get("PYTHONPATH", "")])])
    changed = {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_ARENA_MAX": own.get("MALLOC_ARENA_MAX", "1"),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
    }
    if alone:
        changed["NCCL_SOCKET_IFNAME"] = "lo"
    for name in _ALLOCATOR:
        if name in own:
            kept = [part for part in own[name].split(",") if "cudamallocasync" not in part.lower()]
            changed[name] = ",".join(kept)
    return changed
