"""The node that talks live: with a page and without one, to its end, stopped and cancelled."""

import json
import threading
import time
from types import SimpleNamespace

import av
import fake_comfy
import numpy as np
import pytest
import torch
from live.stream_servers import free_port, listening_ffmpeg, needs_ffmpeg

TALK = "liveavatar.talk"
KEY = "a-secret-key"


@pytest.fixture
def model(pack):
    backend = fake_comfy.run(
        pack.nodes.Backend, engine="this process", devices="cpu", stages="auto", memory="keep loaded", threads=1
    ).args[0]
    automatic = dict.fromkeys(("lora", "text_encoder", "audio_encoder", "vae", "precision"), "automatic")
    load = pack.nodes.LoadModel
    return fake_comfy.run(load, model="miniature (comes along)", **automatic, backend=backend).args[0]


@pytest.fixture
def live(pack, model):
    """Runs the node; every input is a list, as core hands them over."""

    def run(**given):
        image = torch.linspace(0, 1, 64)[None, :, None, None].expand(1, 64, 64, 3)
        asked = {"model": model, "image": image, "source": "microphone", "prompt": "A person talks.", "size": "64x64"}
        asked |= {"steps": 1, "seed": 3, "longest_minutes": 10.0, "filename_prefix": "live"} | given
        return fake_comfy.run(
            pack.nodes.Live, **{name: value if isinstance(value, list) else [value] for name, value in asked.items()}
        )

    return run


class Page:
    """The page that queued the graph: answers an invitation, and does what it is told when the talk begins."""

    def __init__(self, pack, host, on_watch):
        self.pack, self.on_watch, self.told, self.received = pack, on_watch, [], 0
        self.gone = threading.Event()
        self.invitations = []
        server = host.modules["server"].PromptServer.instance
        send = server.send_sync

        def listen(event, data, sid=None):
            send(event, data, sid)
            if event == TALK:
                self.invitations.append((data, sid))
                self.room = pack.nodes.talks.room_of(data["prompt"], data["node"])
                assert self.room.token == data["token"]
                self.room.admit(self, "")

        server.send_sync = listen

    def watch(self, talk):
        talk.watch(self.receive)
        threading.Thread(target=self.on_watch, args=(talk,), daemon=True).start()

    def receive(self, block):
        self.received += 1

    def tell(self, message):
        self.told.append(message)

    def say_ended(self, error):
        self.told.append({"type": "bye"})

    def hang_up(self):
        self.gone.set()


def sound(seconds, batch=1):
    wave = 0.3 * torch.sin(torch.arange(round(16_000 * seconds)) / 6)
    return {"waveform": wave.expand(batch, 1, -1), "sample_rate": 16_000}


def frames_in(out) -> int:
    with av.open(out.args[0].get_stream_source()) as container:
        return sum(1 for _ in container.decode(video=0))


def stop_after(blocks):
    def stop(talk):
        talk.push(np.zeros(16_000, np.float32), 16_000)
        wait_for(talk, blocks + 1)  # then so many have been handed over
        talk.close()

    return stop


def wait_for(talk, blocks):
    while talk.session.stats.block < blocks and talk.session.stats.state != "closed":
        time.sleep(0.01)


def no_page(host):
    host.modules["server"].PromptServer.instance.client_id = None


def test_without_a_page_sounds_are_recorded_one_after_the_other(live, host):
    no_page(host)
    out = live(source="AUDIO input", audio=[sound(0.7), sound(0.5, batch=2)])
    assert frames_in(out) == 12 * 4  # 1.7 s
    receipt = json.loads(out.args[1])
    assert receipt["seconds"] == 1.92 and receipt["seed"] == 3 and receipt["model"]
    shown = out.ui.as_dict()["images"][0]
    assert (host.base / "temp" / shown["filename"]).is_file()
    assert TALK not in [event for event, _ in host.messages]


@pytest.fixture
def two(pack):
    """Speakers of the left and the right half, as the node of that name gives them."""

    def speakers(*seconds, silent=()):
        masks = [torch.zeros(1, 64, 64) for _ in seconds]
        masks[0][..., :32], masks[1][..., 32:] = 1, 1
        sounds = [sound(length) for length in seconds]
        for number in silent:
            sounds[number - 1]["waveform"] = 0 * sounds[number - 1]["waveform"]
        given = {f"audio.audio_{i}": one for i, one in enumerate(sounds, 1)}
        given |= {f"mask.mask_{i}": one for i, one in enumerate(masks, 1)}
        return pack.nodes.Speakers.execute(**given).args[0]

    return speakers


def test_several_speakers_say_what_is_connected_at_once(live, host, two):
    no_page(host)
    out = live(source="AUDIO input", audio=two(0.7, 0.3))
    assert frames_in(out) == 12 * 2
    told = json.loads(out.args[1])["speakers"]
    assert [(one["mask"], one["seconds"]) for one in told] == [
        ("mask_1", pytest.approx(0.7, abs=0.01)),
        ("mask_2", pytest.approx(0.3, abs=0.01)),
    ]


def test_a_page_speaks_for_one_of_several_and_nobody_waits_for_silence(live, host, pack, two):
    said = np.full(16_000, 0.2, np.float32)

    def speak(talk):
        talk.push(said, 16_000, speaker=2)
        wait_for(talk, 4)  # then three have been handed over
        talk.close()

    page = Page(pack, host, speak)
    out = live(audio=two(60.0, 60.0, silent=(1, 2)))
    assert page.room.speaker_count == 2 and frames_in(out) >= 36
    told = json.loads(out.args[1])["speakers"]
    assert told[0]["seconds"] == 0 and told[1]["seconds"] > 0.9


def test_several_speakers_are_held_against_the_portrait_before_anybody_is_asked(live, host, pack, two):
    wide = torch.linspace(0, 1, 64)[None, :, None, None].expand(1, 64, 128, 3)
    for given, said in (
        ({"image": wide}, "64x64, and the picture 128x64"),
        ({"audio": [two(0.5, 0.5), sound(0.5)]}, "several speakers and other sounds"),
    ):
        with pytest.raises(pack.liveavatar.errors.SpeakerError, match=said):
            live(**{"audio": two(0.5, 0.5)} | given)
    assert TALK not in [event for event, _ in host.messages]


def test_a_page_watches_is_heard_and_stops_it(live, host, pack):
    page = Page(pack, host, stop_after(3))
    out = live()
    assert frames_in(out) >= 36 and page.received >= 3 and page.gone.is_set()
    ((invitation, sid),) = page.invitations
    assert sid == "browser" and len(invitation["token"]) > 20
    assert (invitation["source"], invitation["longest_s"]) == ("microphone", 600.0)
    assert pack.nodes.talks.room_of("prompt", "1") is None
    phases = [data["phase"] for event, data in host.messages if event == "liveavatar.progress"]
    assert phases[-2:] == ["talking", "done"]


def test_it_ends_by_itself(live, host):
    no_page(host)
    assert frames_in(live(source="AUDIO input", audio=sound(60.0), longest_minutes=0.02)) == 36


def test_cancel_keeps_nothing_and_lets_the_page_go(live, host, pack):
    def cancel(talk):
        wait_for(talk, 1)
        host.interrupt()

    page = Page(pack, host, cancel)
    with pytest.raises(host.modules["comfy.model_management"].InterruptProcessingException):
        live()
    assert page.gone.is_set() and not list((host.base / "temp").iterdir())
    assert pack.nodes.talks.room_of("prompt", "1") is None
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"liveavatar-live", "liveavatar-talk"}


def test_a_microphone_needs_a_page_that_answers(live, host, pack, model, monkeypatch):
    monkeypatch.setitem(pack.nodes.live.ANSWER_SECONDS, "microphone", 0.3)
    with pytest.raises(pack.liveavatar.errors.RequestError, match="did not answer"):
        live()
    no_page(host)
    with pytest.raises(pack.liveavatar.errors.RequestError, match="queued by a program"):
        live()
    assert model.loaded_bytes == 0, "refused before anything was loaded"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "AUDIO input"}, "Nothing is connected"),
        ({"source": "AUDIO input", "audio": {"waveform": None, "sample_rate": 1}}, "not a tensor"),
        ({"size": "1x1"}, "size|small"),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_asked(live, host, pack, given, said):
    with pytest.raises(pack.liveavatar.errors.LiveAvatarError, match=said):
        live(**given)
    assert TALK not in [event for event, _ in host.messages]


@needs_ffmpeg
def test_it_is_sent_to_an_address_while_it_goes_on(live, host, pack, tmp_path):
    def stop_when_it_was_sent(talk):
        while page.room.outputs[0].state != "sending":
            time.sleep(0.01)
        wait_for(talk, talk.session.stats.block + 6)
        talk.close()

    page = Page(pack, host, stop_when_it_was_sent)
    out, port = tmp_path / "sent.flv", free_port()
    with listening_ffmpeg(f"rtmp://127.0.0.1:{port}/live/{KEY}", out, "-listen", "1") as server:
        made = live(out_url=f"rtmp://127.0.0.1:{port}/live/{KEY}")
        server.wait(60)
    sent = json.loads(made.args[1])["sent"]
    assert sent["to"] == f"rtmp://127.0.0.1:{port}/live/***" and sent["state"] == "closed"
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 25


def test_where_nobody_listens_the_talk_goes_on_and_the_key_stays_secret(live, host, pack, monkeypatch, caplog):
    address = f"rtmp://127.0.0.1:{free_port()}/live/{KEY}"
    monkeypatch.setenv("LIVEAVATAR_OUT_URL", address)
    page = Page(pack, host, stop_after(3))
    out = live(out_url="$LIVEAVATAR_OUT_URL")
    assert page.gone.wait(10) and frames_in(out) >= 36
    sent = json.loads(out.args[1])["sent"]
    assert sent["state"] == "closed" and sent["to"].endswith("/live/***")
    assert KEY not in out.args[1] + caplog.text + repr(host.messages)


@pytest.mark.parametrize("url", ["ftp://a.example/x", f"rtmp://a.example/{KEY}", "$PATH", "$LIVEAVATAR_NOT_SET"])
def test_an_address_that_cannot_be_is_refused_at_once(live, host, pack, url):
    assert "out_url: " in (fault := str(pack.nodes.Live.validate_inputs(out_url=[url]))) and KEY not in fault
    with pytest.raises(pack.liveavatar.errors.RequestError):
        live(out_url=url)
    assert TALK not in [event for event, _ in host.messages]
    assert pack.nodes.Live.validate_inputs(out_url=[None]) is True
    assert pack.nodes.Live.validate_inputs(out_url=[" "]) is True


def test_it_is_never_taken_from_the_cache_and_sizes_are_checked_at_once(pack):
    node = pack.nodes.Live
    assert node.fingerprint_inputs() != node.fingerprint_inputs()
    assert node.validate_inputs(size=["704x384"]) is True
    assert node.validate_inputs(size=[None]) is True
    assert "size" in str(node.validate_inputs(size=["large"]))


def test_the_routes_are_registered(pack, host):
    routes = {}
    pack.nodes.talks.register(SimpleNamespace(get=lambda path: lambda handler: routes.update({path: handler})))
    assert set(routes) == {pack.nodes.talks.SOCKET_ROUTE, pack.nodes.talks.PAGE_ROUTE}
