"""The node Meter in a real ComfyUI, on a video that was just made."""

from __future__ import annotations

import importlib.util
import json

import graphs
import pytest
from live_client import Client
from outcome import succeeded

HAS_DLIB = importlib.util.find_spec("dlib") is not None


def measured() -> graphs.Graph:
    """The modular graph with the meter behind its decoder, and behind core's own nodes, which keep videos in memory."""
    graph = graphs.modular(voice=graphs.LONG_VOICE, seconds=4.0)
    graph["meter"] = graphs.node("LiveAvatarMeter", video=["decode", 0], image=["picture", 0])
    graph["figures"] = graphs.node("PreviewAny", source=["meter", 1])
    graph["parts"] = graphs.node("GetVideoComponents", video=["decode", 0])
    graph["again"] = graphs.node("CreateVideo", images=["parts", 0], audio=["parts", 1], fps=["parts", 2])
    graph["other meter"] = graphs.node("LiveAvatarMeter", video=["again", 0])
    return graph


@pytest.mark.skipif(not HAS_DLIB, reason="dlib is not installed: the extra `meter`")
def test_lips_and_voice_of_a_new_video_are_together(client: Client) -> None:
    run = succeeded(client.run(measured()))
    (report,) = run.shown["meter"]["text"]
    assert "Lips and sound are together" in report and "taken for that of the portrait throughout" in report
    figures = json.loads(run.shown["figures"]["text"][0])
    assert figures["frames"] == 100 and abs(figures["whole"]["lips"]["offset_ms"]) <= 45
    assert "of the first second" in run.shown["other meter"]["text"][0]


@pytest.mark.skipif(HAS_DLIB, reason="dlib is installed")
def test_without_dlib_the_node_says_what_it_needs(client: Client) -> None:
    run = client.run(measured())
    assert run.outcome == "error" and "dlib-bin" in run.error["exception_message"]
