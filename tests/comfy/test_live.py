"""Talk in the graph: a recorded microphone is heard, the face plays in the node, and everything is given back.

Screenshots go to $LIVEAVATAR_SCREENSHOTS, or to pytest's temporary folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import graphs
import pytest
from browser import MODES, Look, browse
from live.stream_servers import free_port, listening_ffmpeg, needs_ffmpeg
from live_client import Client, Refused
from live_server import Absent, Server, serve
from outcome import receipt_of, saved, succeeded
from video_file import look_into

VOICE = graphs.ASSETS / "voice.wav"
MICROPHONE = (
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    f"--use-file-for-fake-audio-capture={VOICE}",
)
TALKING = "() => [...document.querySelectorAll('.liveavatar .live video')].some((video) => video.currentTime > 1)"
OVER_WEBRTC = TALKING.replace("video.currentTime", "video.srcObject && video.currentTime")
OPEN_MICROPHONES = (
    "() => window.streams.filter((one) => one.getTracks().some((track) => track.readyState === 'live')).length"
)
WATCH_MICROPHONES = """() => {
  if (window.streams) return (window.streams.length = 0);
  window.streams = [];
  const { mediaDevices } = navigator, given = mediaDevices.getUserMedia.bind(mediaDevices);
  mediaDevices.getUserMedia = async (wish) => {
    const stream = await given(wish);
    window.streams.push(stream);
    return stream;
  };
}"""


@pytest.fixture(scope="module")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI whose pages may play streams."""
    try:
        with serve(tmp_path_factory.mktemp("comfyui"), streams=True) as running:
            graphs.write_inputs(running.base / "input")
            yield running
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def live_client(live_server: Server) -> Client:
    return live_server.client


@pytest.fixture(scope="module", params=MODES)
def look(
    request: pytest.FixtureRequest, live_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Look]:
    named = os.environ.get("LIVEAVATAR_SCREENSHOTS")
    out = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    try:
        with browse(live_server.url, request.param, out, *MICROPHONE) as page:
            yield page
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def at_rest(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test judges only its own errors."""
    if "look" in request.fixturenames:
        request.getfixturevalue("look").errors.clear()
    yield


def begin(look: Look, seconds: float = 120) -> None:
    """Open the template, press Run, and wait until the face talks."""
    look.open("live")
    look.page.evaluate(WATCH_MICROPHONES)
    look.focus("LiveAvatarLive")
    look.press_run()
    look.page.wait_for_function(TALKING, timeout=seconds * 1000)


def press(look: Look, name: str) -> None:
    look.page.locator(".liveavatar .controls").get_by_role("button", name=name, exact=True).first.click()


def say(look: Look, state: str, seconds: float = 60) -> None:
    """Until the panel shows a state."""
    look.wait_for_panel(state, seconds)


def released(look: Look) -> None:
    look.page.wait_for_function(f"() => ({OPEN_MICROPHONES})() === 0", timeout=20_000)
    assert look.page.evaluate("() => window.streams.length") >= 1, "the microphone was never asked for"


def test_it_speaks_in_the_node_and_stop_gives_the_recording(look: Look, live_server: Server) -> None:
    before = set((live_server.base / "output").rglob("*.mp4"))
    begin(look)
    say(look, "talking|too slow")
    look.picture("live_talks")
    press(look, "Stop talking")
    say(look, "interrupted|quiet|talking|too slow")
    look.page.fill(".liveavatar form.controls:last-of-type input", "A person laughs in front of a green wall.")
    press(look, "Change")
    say(look, "next picture")
    look.page.wait_for_timeout(3000)
    look.picture("live_changed")
    press(look, "Stop")
    say(look, "Recorded")
    look.wait_for_end()
    released(look)
    assert look.play()
    look.picture("live_recorded")
    (video,) = set((live_server.base / "output").rglob("*.mp4")) - before
    found = look_into(video)
    assert found.frames >= 50 and found.sound
    assert look.ours == []


def test_of_two_people_the_one_who_is_chosen_says_what_the_microphone_hears(look: Look, live_server: Server) -> None:
    graph = two_live(source="microphone", longest_minutes=5.0, steps=1)
    for name in ("left_silence", "right_silence"):
        graph[name] = graphs.node("EmptyAudio", duration=30.0, sample_rate=44_100, channels=1)
    graph["speakers"]["inputs"] |= {"audio.audio_1": ["left_silence", 0], "audio.audio_2": ["right_silence", 0]}
    look.page.evaluate("(graph) => look.app.loadApiJson(graph, 'two people')", graph)
    look.page.evaluate(WATCH_MICROPHONES)
    look.focus("LiveAvatarLive")
    look.press_run()
    look.page.wait_for_function(TALKING, timeout=120_000)
    chosen = look.page.locator(".liveavatar .controls select").first
    assert chosen.locator("option").all_inner_texts() == ["Speaker 1", "Speaker 2"]
    chosen.select_option("2")
    say(look, "(talking|too slow)[^·]*· (Speaker 1 · )?Speaker 2")
    look.picture("live_two_people")
    press(look, "Stop")
    say(look, "Recorded")
    look.wait_for_end()
    released(look)
    assert look.ours == []


def test_it_is_watched_over_webrtc_where_that_is_installed(look: Look) -> None:
    begin(look)
    button = look.page.locator(".liveavatar .controls").get_by_role("button", name="Low delay", exact=True).first
    if not button.is_visible():
        look.page.evaluate("() => window.comfyAPI.api.api.interrupt(null)")
        look.wait_for_end()
        pytest.skip("ComfyUI's Python lacks the package aiortc")
    button.click()
    look.page.wait_for_function(OVER_WEBRTC, timeout=30_000)
    look.page.wait_for_timeout(1500)
    look.picture("live_low_delay")
    button.click()
    look.page.wait_for_function(f"() => !({OVER_WEBRTC})()", timeout=30_000)
    look.page.wait_for_function(TALKING, timeout=30_000)
    press(look, "Stop")
    say(look, "Recorded")
    look.wait_for_end()
    released(look)
    assert look.ours == []


def test_cancel_while_it_speaks_frees_everything(look: Look, live_server: Server, live_client: Client) -> None:
    before = set((live_server.base / "temp").rglob("*.mp4"))
    begin(look)
    assert look.page.evaluate(OPEN_MICROPHONES) == 1
    look.page.evaluate("() => window.comfyAPI.api.api.interrupt(null)")
    look.wait_for_panel("^Cancelled", 20)
    look.wait_for_end()
    released(look)
    assert set((live_server.base / "temp").rglob("*.mp4")) == before
    look.picture("live_cancelled")
    succeeded(live_client.run(graphs.one_node(seconds=0.5)))
    assert look.ours == []


def test_another_tab_and_a_reload_leave_it_talking(look: Look) -> None:
    begin(look)
    look.open("quickstart")
    look.page.wait_for_timeout(1500)
    look.page.evaluate("() => look.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    look.page.wait_for_function(TALKING, timeout=30_000)
    look.page.wait_for_timeout(1500)
    look.reload()
    look.page.wait_for_function(TALKING, timeout=30_000)
    look.wait_for_panel("microphone is off", 20)
    look.picture("live_reloaded")
    press(look, "Stop")
    say(look, "Recorded")
    early = "Unhandled message"  # the frontend hears the running node before it has loaded the pack's script
    assert [one for one in look.ours if early not in one] == []


def live(**given: Any) -> graphs.Graph:
    """The node with a queue of sounds and Save Video behind it."""
    graph = graphs.one_node()
    inputs = {name: graph["avatar"]["inputs"][name] for name in ("model", "image", "audio", "prompt", "size", "steps")}
    asked = {"source": "AUDIO input", "longest_minutes": 10.0, "seed": 1, "filename_prefix": "live", **given}
    return {**graph, "avatar": graphs.node("LiveAvatarLive", **(inputs | asked))}


def two_live(**given: Any) -> graphs.Graph:
    """The node with two people in its picture."""
    inputs = {"image": ["pair", 0], "audio": ["speakers", 0], "size": "256x128", **given}
    return {**graphs.two_speakers(), "avatar": live(**inputs)["avatar"]}


def test_sounds_are_recorded_without_any_page(live_server: Server, live_client: Client) -> None:
    run = succeeded(live_client.run(live()))
    video = look_into(saved(live_server, run))
    assert video.frames == 48 and video.sound  # 1.9 s are four blocks
    assert "avatar" in succeeded(live_client.run(live())).executed, "a talk is never taken from the cache"


def test_two_people_are_recorded_with_both_sounds(live_server: Server, live_client: Client) -> None:
    run = succeeded(live_client.run(two_live(steps=1)))
    video = look_into(saved(live_server, run))
    assert video.sound and (video.width, video.height) == (256, 128)
    told = receipt_of(run)["speakers"]
    assert [one["mask"] for one in told] == ["mask_1", "mask_2"] and all(one["seconds"] > 0.5 for one in told)


@needs_ffmpeg
def test_it_is_sent_to_an_address_while_it_goes_on(live_server: Server, live_client: Client, tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "sent.flv"
    address = f"rtmp://127.0.0.1:{port}/live/a-secret-key"
    with listening_ffmpeg(address, out, "-listen", "1") as listener:
        run = succeeded(live_client.run(live(audio=["long", 0], longest_minutes=0.3, out_url=address) | LONG))
        listener.wait(60)
    sent = receipt_of(run)["sent"]
    assert sent["to"] == f"rtmp://127.0.0.1:{port}/live/***" and sent["state"] == "closed"
    assert look_into(out).frames > 25


def test_an_address_that_cannot_be_is_refused_before_it_runs(live_client: Client) -> None:
    with pytest.raises(Refused) as refused:
        live_client.run(live(out_url="ftp://127.0.0.1/a-secret-key"))
    ((node, told),) = refused.value.nodes.items()
    words = " ".join(f"{error['message']} {error['details']}" for error in told["errors"])
    assert node == "avatar" and "out_url" in words and "rtmp://" in words


def test_a_microphone_without_our_page_is_refused_with_a_sentence(live_client: Client) -> None:
    run = live_client.run(live(source="microphone"))
    assert run.outcome == "error"
    assert "did not answer" in run.error["exception_message"]


def test_a_talk_ends_by_itself_and_cancel_ends_it_too(live_server: Server, live_client: Client) -> None:
    run = succeeded(live_client.run(live(audio=["long", 0], longest_minutes=0.1) | LONG))
    assert look_into(saved(live_server, run)).frames == 156  # 6 s are 12.5 blocks
    pressed: list[bool] = []

    def cancel(event: Any) -> None:
        if event.kind == "liveavatar.progress" and event.data["phase"] == "talking" and not pressed:
            live_client.interrupt()
            pressed.append(True)

    run = live_client.run(live(audio=["long", 0]) | LONG, cancel)
    assert run.outcome == "interrupted" and pressed


LONG = {"long": graphs.node("LoadAudio", audio=graphs.LONG_VOICE)}
