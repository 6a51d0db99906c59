"""Where the work runs."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..liveavatar.engine.backend import LocalBackend
from ..liveavatar.placement import Placement
from .host import with_devices
from .schema import CATEGORY, BackendSocket, advanced, supported

IN_PROCESS, WORKERS = "this process", "worker processes"
KEEP, FREE = "keep loaded", "free after each run"


class Backend(io.ComfyNode):
    """Where the work runs, as a small settings node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Sockets and widgets."""
        return io.Schema(
            node_id="LiveAvatarBackend",
            display_name="Backend (Live Avatar)",
            category=CATEGORY,
            description="Says where the network runs and how it is cut over devices. Connect it to Load Model; without "
            "it, everything runs in this process on ComfyUI's own device.",
            inputs=[
                io.Combo.Input(
                    "engine",
                    options=[IN_PROCESS, WORKERS],
                    default=IN_PROCESS,
                    tooltip="Who runs the stages. This process needs no other service; worker processes, one per "
                    "stage, let several devices work side by side and need Ray.",
                ),
                io.String.Input(
                    "devices",
                    default="auto",
                    tooltip="Devices in order, for example cuda:0,cuda:1. auto takes ComfyUI's own device.",
                ),
                io.String.Input(
                    "stages",
                    default="auto",
                    tooltip="How the work is cut: groups of steps x parts of layers, for example 1x4 (each of four "
                    "cards holds a quarter of the layers) or 4x1 (each holds one step). auto cuts the layers.",
                ),
                io.Combo.Input(
                    "memory",
                    options=[KEEP, FREE],
                    default=KEEP,
                    tooltip="Whether weights stay loaded for the next run. ComfyUI may take them away at any time; "
                    "they come back by themselves.",
                ),
                io.Int.Input(
                    "threads",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="CPU threads of each task; 0 chooses. Frames are equal to the bit only at equal numbers.",
                ),
                advanced(
                    io.Int.Input(
                        "restarts",
                        default=2,
                        min=0,
                        max=100,
                        optional=True,
                        tooltip="Worker processes that may be lost or hang in one video: they are replaced and it goes "
                        "on. At 0 the first one ends it with an error.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "address",
                        default="local",
                        optional=True,
                        tooltip="Where worker processes run: local is this machine; auto is the cluster that the owner "
                        "of this server has chosen. Devices of other machines are named machine/cuda:0.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "compile",
                        default=False,
                        optional=True,
                        tooltip="Compile the layers before the first block: a minute or more once per size, for "
                        "blocks that may be faster. It needs Triton on GPUs and a C++ compiler on the CPU.",
                    )
                ),
            ],
            outputs=[BackendSocket.Output(display_name="backend", tooltip="For Load Model.")],
            **supported(search_aliases=["live avatar devices", "multi gpu", "distributed"]),
        )

    @classmethod
    def execute(
        cls,
        engine: str,
        devices: str,
        stages: str,
        memory: str,
        threads: int,
        restarts: int = 2,
        address: str = "local",
        compile: bool = False,
    ) -> io.NodeOutput:
        """The backend; nothing is loaded."""
        named = () if devices.strip() in ("", "auto") else tuple(d.strip() for d in devices.split(",") if d.strip())
        kept = memory == KEEP
        placement = Placement(named, stages.strip() or "auto", None, threads or None, kept, compile=compile)
        if engine == WORKERS:
            from ..liveavatar.distributed import RayBackend, check_workflow_address

            where = address.strip() or "local"
            check_workflow_address(where)
            return io.NodeOutput(RayBackend(with_devices(placement), where, restarts=restarts))
        return io.NodeOutput(LocalBackend(with_devices(placement)))
