"""What ComfyUI sees: thin adapters, each one sockets -> one call of the library -> sockets."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from . import paths
from .audio import AudioFeatures
from .audio_list import AudioList
from .avatar import Avatar
from .backend import Backend
from .decode import Decode
from .host import serve_pages
from .latent import Latent
from .live import Live
from .load import LoadModel
from .lora import LoRA
from .meter import Meter
from .plan import Plan
from .sample import Sample
from .sampler import Sampler
from .state import LoadState, SaveState
from .text import TextEncode

NODES: list[type[io.ComfyNode]] = [
    Avatar,
    LoadModel,
    Backend,
    TextEncode,
    AudioFeatures,
    Sampler,
    Decode,
    Latent,
    Plan,
    Sample,
    LoRA,
    AudioList,
    SaveState,
    LoadState,
    Live,
    Meter,
]


class LiveAvatarExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes."""
        return NODES


async def comfy_entrypoint() -> LiveAvatarExtension:
    """Called by ComfyUI once, at start."""
    paths.register()
    serve_pages()
    return LiveAvatarExtension()
