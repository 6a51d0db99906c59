"""Two speakers in a real ComfyUI, with masks of core's nodes: the same graph on cores that know growing sockets and on
those that do not."""

from __future__ import annotations

import graphs
import pytest
from live_client import Client, Refused
from live_server import Server
from outcome import assert_correct, receipt_of, saved, succeeded

SPOKEN = 1.0


def test_two_voices_with_masks_of_core_make_one_video_with_both_sounds(server: Server, client: Client) -> None:
    run = succeeded(client.run(graphs.two_speakers(seconds=SPOKEN)))
    assert_correct(saved(server, run), SPOKEN, (256, 128))
    receipt = receipt_of(run)
    assert receipt["effective"]["speaker_count"] == 2
    told = [(one["audio"], one["mask"], one["share"]) for one in receipt["speakers"]]
    assert told == [("audio_1", "mask_1", 0.5), ("audio_2", "mask_2", 0.5)]
    swapped = graphs.two_speakers(seconds=SPOKEN)
    wires = swapped["speakers"]["inputs"]
    wires["mask.mask_1"], wires["mask.mask_2"] = wires["mask.mask_2"], wires["mask.mask_1"]
    again = client.run(swapped)
    assert "model" in again.cached, "a mask loads nothing anew"
    assert receipt_of(succeeded(again))["frames_sha256"] != receipt["frames_sha256"]


def test_a_third_speaker_is_counted_by_the_plan(client: Client) -> None:
    graph = graphs.two_speakers(seconds=SPOKEN)
    graph["silence"] = graphs.node("EmptyAudio", duration=0.5, sample_rate=44_100, channels=1)
    graph["dark"] = graphs.node("SolidMask", value=0.0, width=512, height=256)
    graph["spot"] = graphs.node("SolidMask", value=1.0, width=60, height=60)
    spot = {"x": 226, "y": 0, "operation": "add"}
    graph["middle"] = graphs.node("MaskComposite", destination=["dark", 0], source=["spot", 0], **spot)
    for side, x in (("left", 0), ("right", 300)):
        graph[side]["inputs"]["x"] = x
    graph["white"]["inputs"]["width"] = 212
    graph["speakers"]["inputs"] |= {"audio.audio_3": ["silence", 0], "mask.mask_3": ["middle", 0]}
    asked = {"size": "256x128", "steps": 4, "seconds": SPOKEN}
    links = {"model": ["model", 0], "image": ["pair", 0], "audio": ["speakers", 0]}
    graph["plan"] = graphs.node("LiveAvatarPlan", **links, **asked)
    for name in ("avatar", "save", "receipt"):
        del graph[name]
    (report,) = succeeded(client.run(graph)).shown["plan"]["text"]
    assert ", 3 speakers" in report and "speaker 3: audio_3, 0.50 s, at mask_3" in report


@pytest.mark.parametrize(
    ("gone", "said"),
    [("mask.mask_2", "audio_2 is connected, but mask_2 is not"), ("audio.audio_1", "mask_1 is connected, but audio_1")],
)
def test_a_missing_wire_is_said_before_anything_runs(client: Client, gone: str, said: str) -> None:
    graph = graphs.two_speakers()
    del graph["speakers"]["inputs"][gone]
    with pytest.raises(Refused) as refused:
        client.run(graph)
    assert said in str(refused.value.nodes["speakers"])


def test_masks_that_overlap_are_said_on_the_node_that_knows_the_picture(client: Client) -> None:
    graph = graphs.two_speakers()
    graph["speakers"]["inputs"]["mask.mask_2"] = graph["speakers"]["inputs"]["mask.mask_1"]
    run = client.run(graph)
    assert run.outcome == "error" and run.error["node_id"] == "avatar"
    assert "The masks of speaker 1 (audio_1) and speaker 2 (audio_2) overlap" in run.error["exception_message"]
