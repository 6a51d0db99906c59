"""A video that goes on from another one, in a real ComfyUI: in one graph, and from a file on another day."""

from __future__ import annotations

import graphs
from live_client import Client
from live_server import Server
from outcome import receipt_of, succeeded


def test_a_second_sampler_goes_on_from_the_first_and_a_third_from_the_file(server: Server, client: Client) -> None:
    graph = graphs.two_parts(steps=2, seed=31)
    run = succeeded(client.run(graph))
    first, second = receipt_of(run), receipt_of(run, "receipt2")
    assert first["probed"]["frames"] == 48 and second["probed"]["frames"] == 13
    assert second["effective"]["first_block"] == 4 and second["effective"]["seed"] == 31
    (file,) = (server.base / "output" / "liveavatar").iterdir()
    client.free()
    graph["load"] = graphs.node("LiveAvatarLoadState", file=file.name)
    later = graphs.changed(graph, "sampler2", state=["load", 0])
    for name in ("sampler", "decode", "save", "receipt", "keep"):
        del later[name]
    again = receipt_of(succeeded(client.run(later)), "receipt2")
    assert again["frames_sha256"] == second["frames_sha256"]
