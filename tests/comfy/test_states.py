"""A video that goes on from another one, in a real ComfyUI: in one graph, and from a file on another day."""

from __future__ import annotations

import graphs
from live_client import Client
from live_server import Server
from outcome import receipt_of, succeeded
from test_cancel import cancelled, in_block


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


def test_a_cancelled_video_is_continued_from_the_state_it_left_and_one_from_its_last_frames(
    server: Server, client: Client
) -> None:
    graph = graphs.changed(graphs.modular(steps=2, seed=33, voice=graphs.LONG_VOICE), "sampler", keep_state=True)
    run, _ = cancelled(client, graph, in_block(3))
    told = run.progress[-1]
    assert run.outcome == "interrupted" and told["phase"] == "cancelled"
    assert (server.base / "output" / "liveavatar" / told["state"]).is_file()
    assert told["state"] in server.written()
    offered = client.get("/object_info/LiveAvatarLoadState")["LiveAvatarLoadState"]["input"]["required"]["file"]
    assert told["state"] in str(offered)
    graph["load"] = graphs.node("LiveAvatarLoadState", file=told["state"])
    later = graphs.changed(graph, "sampler", state=["load", 0], keep_state=False)
    later["audio"]["inputs"]["seconds"] = 1.0
    receipt = receipt_of(succeeded(client.run(later)))
    assert receipt["effective"]["first_block"] >= 3 and receipt["effective"]["seed"] == 33
    graph["load"] = graphs.node("LiveAvatarLoadState", file="none", video=["decode", 0])
    later = {**graphs.changed(graphs.two_parts(steps=2, seed=34), "sampler2", state=["load", 0]), "load": graph["load"]}
    receipt = receipt_of(succeeded(client.run(later)), "receipt2")
    assert any("approximately" in note for note in receipt["effective"]["notes"])
