"""GGUF files in ComfyUI's folders are offered, opened and run, packed as they are."""

from __future__ import annotations

import shutil

import graphs
import pytest
from live_client import Client
from live_server import Server
from outcome import assert_correct, receipt_of, saved, succeeded
from weights.gguf_files import mini_transformer, write_gguf

from liveavatar.components import MINI_FOLDER

NAME = "mini/mini-Q4_0.gguf"


@pytest.fixture(scope="module")
def gguf_model(server: Server) -> str:
    """The miniature in the server's folders, its network in four bits."""
    folder = server.base / "models" / "diffusion_models" / "mini"
    shutil.copytree(MINI_FOLDER, folder)
    for file in folder.glob("diffusion_pytorch_model*"):
        file.unlink()
    write_gguf(folder / "mini-Q4_0.gguf", mini_transformer(), "Q4_0")
    return NAME


def test_a_gguf_file_is_offered_and_runs_packed(server: Server, client: Client, gguf_model: str) -> None:
    assert gguf_model in choices(client)
    graph = graphs.changed(graphs.one_node(), "model", model=gguf_model)
    graph["backend"] = graphs.node(
        "LiveAvatarBackend",
        engine="this process",
        devices="cpu",
        stages="auto",
        memory="keep loaded",
        threads=0,
        storage="by hand",
        weights="gguf",
    )
    run = succeeded(client.run(graphs.changed(graph, "model", backend=["backend", 0])))
    assert_correct(saved(server, run), graphs.SECONDS)
    assert receipt_of(run)["plan"]["stages"][0]["storage"]["weights"] == "gguf"


def choices(client: Client) -> list[str]:
    """The models that are offered; newer versions of ComfyUI list them beside the type."""
    model = client.get("/object_info/LiveAvatarLoadModel")["LiveAvatarLoadModel"]["input"]["required"]["model"]
    return list(model[0] if isinstance(model[0], list) else model[1]["options"])
