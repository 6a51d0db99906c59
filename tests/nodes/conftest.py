"""The pack, imported as ComfyUI imports it, on stand-ins for ComfyUI."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

# fake_comfy, fake_host and frozen lie here; a dotted name would mean the pack's own folder `nodes`.
sys.path.insert(0, str(Path(__file__).parent))

import fake_comfy
import fake_host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[fake_host.Host]:
    """A ComfyUI with empty folders; take it before `pack` to put files there."""
    standing = fake_host.Host(tmp_path)
    yield standing
    standing.remove()


@pytest.fixture
def pack(host: fake_host.Host) -> Iterator[ModuleType]:
    """The pack, freshly imported."""
    try:
        yield fake_comfy.load_pack()
    finally:
        fake_comfy.forget_pack()


@pytest.fixture
def nodes(pack: ModuleType) -> dict[str, type]:
    """Node classes by id."""
    return {node.define_schema().node_id: node for node in pack.nodes.NODES}


@pytest.fixture
def model(nodes: dict[str, type]) -> object:
    """The miniature in this process."""
    place = {"engine": "this process", "devices": "cpu", "stages": "auto", "memory": "keep loaded", "threads": 1}
    (backend,) = fake_comfy.run(nodes["LiveAvatarBackend"], **place).args
    automatic = dict.fromkeys(("lora", "text_encoder", "audio_encoder", "vae", "precision"), "automatic")
    load = nodes["LiveAvatarLoadModel"]
    return fake_comfy.run(load, model="miniature (comes along)", **automatic, backend=backend).args[0]


@pytest.fixture
def positive(nodes: dict[str, type], model: object) -> object:
    """A prompt, encoded."""
    return fake_comfy.run(nodes["LiveAvatarTextEncode"], model=model, prompt="A person talks.").args[0]
