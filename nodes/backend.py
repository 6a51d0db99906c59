"""Where the work runs, and how it is kept there."""

from __future__ import annotations

from typing import Any

from comfy_api.v0_0_2 import io

from ..liveavatar.attention_choice import ATTENTION_BACKENDS
from ..liveavatar.compiler import COMPILE_CHOICES
from ..liveavatar.engine.backend import LocalBackend
from ..liveavatar.errors import PlanError
from ..liveavatar.placement import Placement
from ..liveavatar.storage import StorageConfig
from .host import named_devices
from .schema import CATEGORY, BackendSocket, advanced, replacing, supported
from .words import refused_in_widgets

IN_PROCESS, WORKERS = "this process", "worker processes"
KEEP, FREE = "keep loaded", "free after each run"
_SWITCH = {"true": "on", "false": "off"}
"""What the positions of the switch meant that `compile` was, for the page as well, which shows them so."""
QUALITY, SPEED, BY_HAND = "automatic (quality)", "automatic (speed)", "by hand"


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
                    tooltip="auto: all cards that help, ComfyUI's own first. this card: ComfyUI's own alone. Or "
                    "devices in order, for example cuda:0,cuda:1.",
                ),
                io.String.Input(
                    "stages",
                    default="auto",
                    tooltip="How the work is cut: groups of steps x parts of layers, for example 1x4 (each of four "
                    "cards holds a quarter of the layers) or 4x1 (each holds one step). auto lets the plan choose.",
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
                advanced(_compile_input()),
                *_storage_inputs(),
            ],
            outputs=[BackendSocket.Output(display_name="backend", tooltip="For Load Model.")],
            **supported(search_aliases=["live avatar devices", "multi gpu", "distributed"]),
        )

    @classmethod
    def validate_inputs(cls, compile: str | bool | None = None) -> bool | str:
        """Whether `compile` is known; graphs of older versions have a switch there."""
        if compile is None:  # it comes over a link
            return True
        if isinstance(compile, str | bool) and _choice(compile) in COMPILE_CHOICES:
            return True
        return f"{compile!r} is not known. Use {', '.join(COMPILE_CHOICES)}."

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
        compile: str | bool = "auto",
        storage: str = QUALITY,
        vram_cap: float = 0.0,
        host_ram: float = 0.0,
        allow_smaller: bool = False,
        vae_tiles: str = "auto",
        weights: Any = "plain",
        kv_dtype: Any = "plain",
        kv_offload: bool = False,
        offload_text_kv: bool = False,
        offload_layers: int = 0,
        attention: str = "auto",
    ) -> io.NodeOutput:
        """The backend; nothing is loaded."""
        kept = StorageConfig(weights, kv_dtype, kv_offload, offload_text_kv, offload_layers)
        named = named_devices(devices)
        placement = Placement(
            devices=named,
            stages=stages.strip() or "auto",
            threads=threads or None,
            keep_loaded=memory == KEEP,
            storage=kept if storage == BY_HAND else None,
            prefer="speed" if storage == SPEED and "cpu" not in named else "quality",
            allow_smaller=allow_smaller,
            vram_cap=vram_cap or None,
            host_ram=host_ram or None,
            vae_tiles=None if vae_tiles.strip() in ("", "auto") else vae_tiles,
            compile=COMPILE_CHOICES[_choice(compile)],
            attention=attention,
        )
        if engine == WORKERS:
            if attention == "comfyui":
                raise PlanError(
                    "Worker processes do not know which attention ComfyUI has chosen.", "Set attention to auto or sdpa."
                )
            from ..liveavatar.distributed import RayBackend, check_workflow_address

            where = address.strip() or "local"
            check_workflow_address(where)
            with refused_in_widgets():
                return io.NodeOutput(RayBackend(placement, where, restarts=restarts))
        return io.NodeOutput(LocalBackend(placement))


def _compile_input() -> Any:
    """Whether layers are compiled."""
    choice = io.Combo.Input(
        "compile",
        options=list(COMPILE_CHOICES),
        default="auto",
        optional=True,
        tooltip="Compile the layers before the first block: a minute or more once per size, for blocks that may be "
        "faster. auto: on GPUs that can, where the video is so long that it probably pays. It needs Triton on GPUs and "
        "a C++ compiler on the CPU.",
    )
    return replacing(choice, _SWITCH)


def _choice(compile: str | bool) -> str:
    """What a graph says of compiling, in today's words."""
    return _SWITCH[str(compile).lower()] if isinstance(compile, bool) else compile


def _storage_inputs() -> list[Any]:
    """How stages keep weights and KV caches: chosen for the cards, or by hand."""
    chosen = [
        io.Combo.Input(
            "storage",
            options=[QUALITY, SPEED, BY_HAND],
            default=QUALITY,
            optional=True,
            tooltip="How weights and KV cache are kept. automatic fits them to the cards: quality rounds as little as "
            "possible, speed moves as little as possible. A card of 80 GB keeps all of the 14B model as it is; on "
            "less, layers and KV cache lie in host memory or in fp8. by hand: the inputs below, from weights on.",
        ),
        io.Float.Input(
            "vram_cap",
            default=0.0,
            min=0.0,
            max=1000.0,
            step=0.5,
            optional=True,
            tooltip="GB of each card that are used at most, for a card that others use too. 0: all that is free.",
        ),
        io.Float.Input(
            "host_ram",
            default=0.0,
            min=0.0,
            max=10_000.0,
            step=1.0,
            optional=True,
            tooltip="GiB of this machine's memory that may be used, where storage is automatic. 0: all there is.",
        ),
        io.Boolean.Input(
            "allow_smaller",
            default=False,
            optional=True,
            tooltip="Make a smaller video where the asked size does not fit, where storage is automatic.",
        ),
        io.String.Input(
            "vae_tiles",
            default="auto",
            optional=True,
            tooltip="Rows x columns of tiles in which the VAE works, for example 2x2: less memory, a little slower. "
            "auto takes tiles where they are needed.",
        ),
    ]
    by_hand = [
        io.Combo.Input(
            "weights",
            options=["plain", "fp8", "fp8-tensor", "int8", "gguf", "packed", "packed-native"],
            default="plain",
            optional=True,
            tooltip="Used where storage is by hand. plain keeps the numbers of the file; fp8 and int8 halve them. "
            "packed (gguf means the same) keeps the matrices of a GGUF, NVFP4, MXFP8 or INT8 file as they are and "
            "unpacks each for its product; packed-native multiplies NVFP4, MXFP8 and INT8 as they are, by "
            "comfy-kitchen, where the card can.",
        ),
        io.Combo.Input(
            "kv_dtype",
            options=["plain", "fp8", "int4"],
            default="plain",
            optional=True,
            tooltip="Used where storage is by hand. The KV cache in fp8 takes half as much, in int4 little more than a "
            "quarter. What int4 costs the 14B model nobody has measured.",
        ),
        io.Boolean.Input(
            "kv_offload",
            default=False,
            optional=True,
            tooltip="Used where storage is by hand. Keeps the KV cache in host memory; it is copied while layers work.",
        ),
        io.Boolean.Input(
            "offload_text_kv",
            default=False,
            optional=True,
            tooltip="Used where storage is by hand. Moves the weights that only encode the prompt to host memory once "
            "it is encoded.",
        ),
        io.Int.Input(
            "offload_layers",
            default=0,
            min=0,
            max=1000,
            optional=True,
            tooltip="Used where storage is by hand. Layers of each stage in host memory, copied one ahead.",
        ),
    ]
    attention = io.Combo.Input(
        "attention",
        options=list(ATTENTION_BACKENDS),
        default="auto",
        optional=True,
        tooltip="What self-attention is done with. auto and comfyui: as this server was started (for example with "
        "--use-sage-attention). Every kernel is tried on its card first; one that is wrong there is not used.",
    )
    return [advanced(given) for given in (*chosen, *by_hand, attention)]
