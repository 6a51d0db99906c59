"""GGUF, NVFP4 and INT8 files in ComfyUI's folders are offered, opened and run, packed as they are."""

from __future__ import annotations

import importlib.util
import shutil

import graphs
import pytest
from live_client import Client
from live_server import Server
from outcome import assert_correct, receipt_of, saved, succeeded
from weights.gguf_files import mini_transformer
from weights.layout_files import write_packed

from liveavatar.components import MINI_FOLDER

FILES = {
    "Q4_0": ("mini/mini-Q4_0.gguf", "gguf", "packed"),
    "nvfp4": ("mini/mini-nvfp4.safetensors", "packed", "packed"),
    "int8": ("mini/mini-int8.safetensors", "packed-native", "packed-native"),
}
"""Files by the format of their matrices; the words by which they stay packed, and what those mean: "gguf" is an older
one. Of what is multiplied as it is a CPU knows int8 alone."""


@pytest.fixture(scope="module", autouse=True)
def packed_models(server: Server) -> None:
    """The miniature in the server's folders, its network in few bits."""
    folder = server.base / "models" / "diffusion_models" / "mini"
    shutil.copytree(MINI_FOLDER, folder)
    for file in folder.glob("diffusion_pytorch_model*"):
        file.unlink()
    for kind in FILES:
        write_packed(folder / f"mini-{kind}", mini_transformer(), kind)


@pytest.mark.parametrize("kind", FILES)
def test_a_packed_file_is_offered_and_runs_packed(server: Server, client: Client, kind: str) -> None:
    name, weights, meant = FILES[kind]
    if weights == "packed-native" and importlib.util.find_spec("comfy_kitchen") is None:
        pytest.skip("this ComfyUI is older than comfy-kitchen")
    assert name in choices(client)
    graph = graphs.changed(graphs.one_node(), "model", model=name)
    graph["backend"] = graphs.node(
        "LiveAvatarBackend",
        engine="this process",
        devices="cpu",
        stages="auto",
        memory="keep loaded",
        threads=0,
        storage="by hand",
        weights=weights,
    )
    run = succeeded(client.run(graphs.changed(graph, "model", backend=["backend", 0])))
    assert_correct(saved(server, run), graphs.SECONDS)
    plan = receipt_of(run)["plan"]
    assert plan["stages"][0]["storage"]["weights"] == meant
    assert any(f"in {kind}) and are brought to" in note for note in plan["notes"])
    multiplied = any(f"multiplies {kind} matrices as they are" in note for note in plan["notes"])
    assert multiplied == (meant == "packed-native")


def choices(client: Client) -> list[str]:
    """The models that are offered; newer versions of ComfyUI list them beside the type."""
    model = client.get("/object_info/LiveAvatarLoadModel")["LiveAvatarLoadModel"]["input"]["required"]["model"]
    return list(model[0] if isinstance(model[0], list) else model[1]["options"])
