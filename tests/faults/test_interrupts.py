"""An interrupt ends the work at once, but never while the file is half-way through a frame."""

import os
import signal
import threading
import time

import av
import pytest
import torch
from cli.runs import generate, receipt, write_inputs

from liveavatar import LiveAvatarPipeline
from liveavatar.errors import Cancelled
from liveavatar.events import Event
from liveavatar.interrupt import interrupts
from liveavatar.media.video import VideoWriter

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals to oneself")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), 3.0)


def press(times: int = 1, number: int = signal.SIGINT) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0.001)  # a chance for Python to notice


def test_it_strikes_at_once_and_only_once():
    with interrupts() as noted:
        with pytest.raises(KeyboardInterrupt):
            press()
        press(3)
        assert noted.asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_held_is_finished_first():
    done = []
    with interrupts() as noted, pytest.raises(KeyboardInterrupt), noted.held():
        press(2)
        done.append("whole")
    assert done == ["whole"]


def test_insisting_helps_even_against_what_is_held(monkeypatch):
    monkeypatch.setattr("liveavatar.interrupt._INSIST_SECONDS", 0.0)
    with interrupts() as noted:
        noted.hold()
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_inner_ones_are_the_outer_ones():
    with interrupts(terminate=True) as outer, interrupts() as inner:
        assert inner is outer
        with pytest.raises(KeyboardInterrupt):
            press(1, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_applications_own_handlers_stay():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with interrupts() as noted:
            press()
            assert heard == [1] and not noted.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_they_do_nothing():
    seen = []

    def work() -> None:
        with interrupts() as noted, noted.held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_a_block_that_is_being_written_is_written_whole(inputs, tmp_path, monkeypatch):
    write = VideoWriter._mux_picture

    def pressed_between_two_packets(writer, packets) -> None:
        packets = list(packets)
        if writer.frames_written == 30:
            press(2)
        write(writer, packets)

    monkeypatch.setattr(VideoWriter, "_mux_picture", pressed_between_two_packets)
    ran = generate(inputs, out=tmp_path / "out.mp4")
    assert ran.code == 130 and "36 of 75 frames" in ran.err, ran.err
    with av.open(str(tmp_path / "out.mp4")) as container:
        stamps = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert [round(float(t) * 25) for t in stamps] == list(range(36))
    assert receipt(tmp_path)["status"] == "cancelled" and receipt(tmp_path)["frames_sha256"]


def test_too_late_to_cancel_what_is_complete(inputs, tmp_path, monkeypatch):
    close = VideoWriter.close

    def pressed_while_closing(writer) -> None:
        press()
        close(writer)

    monkeypatch.setattr(VideoWriter, "close", pressed_while_closing)
    ran = generate(inputs, seconds=0.3, out=tmp_path / "out.mp4")
    assert ran.code == 0 and receipt(tmp_path)["status"] == "complete"


def test_cancelling_from_the_progress_keeps_what_is_there(inputs, tmp_path):
    def stop(event: Event) -> None:
        if event.frames >= 24:
            raise Cancelled("Enough.")

    pipeline = LiveAvatarPipeline.from_pretrained(threads=1)
    job = pipeline(inputs / "portrait.png", inputs / "voice.wav", size="64x64")
    with pytest.raises(Cancelled, match=r"plays and holds 24 of 75"):
        job.save(tmp_path / "out.mp4", callback=stop)
    assert receipt(tmp_path)["status"] == "cancelled" and receipt(tmp_path)["probed"]["frames"] == 24
    again = job.save(tmp_path / "out.mp4")
    job.close()
    assert again.status == "complete" and again.probed.frames == 75


def test_a_device_without_memory_is_said_in_words(inputs, tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("liveavatar.engine.local.LocalEngine.load", full)
    ran = generate(inputs, out=tmp_path / "out.mp4")
    assert ran.code == 2 and ran.err.splitlines()[-1].startswith("liveavatar: A device has no memory left")
    assert "GB on cpu" in ran.err and "--stages" in ran.err and not (tmp_path / "out.mp4").exists()
