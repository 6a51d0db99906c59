"""What a run may write over: nothing of others, no input, no device, and nothing that another run is writing."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import av
import pytest
from cli.runs import generate, receipt, run, write_inputs
from media.videos import decoded, frames_of, write_film

from liveavatar import LiveAvatarPipeline
from liveavatar.errors import OutputError
from liveavatar.files import OutputClaim, is_stream, write_file
from liveavatar.media.video import VideoWriter
from liveavatar.receipt import RECEIPT_SCHEMA
from liveavatar.recorder import check_outputs

PROJECT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name != "posix", reason="pipes, sockets and links")
pytestmark = posix


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"), 0.3)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(ran, *words: str) -> None:
    """One paragraph with all words."""
    assert ran.code == 2 and ran.err.startswith("liveavatar: ") and ran.err.count("\n") == 1, (ran.code, ran.err)
    assert all(word in ran.err for word in words), ran.err


def test_two_runs_do_not_write_one_video(inputs, tmp_path):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 64, 64, None, 60, {}) as writer:
        writer.write(frames_of(36))
        refused(generate(inputs, out=path), "out.mp4", "being written by another run")
        refused(generate(inputs, out=path, receipt=tmp_path / "other.json"), "out.mp4", "another run")
        writer.write(frames_of(24))
    assert len(decoded(path)) == 60 and names(tmp_path) == ["out.mp4"]
    assert generate(inputs, out=path).code == 0 and len(decoded(path)) == 8


def test_of_two_that_begin_where_nothing_is_the_second_gives_way(tmp_path):
    path = tmp_path / "out.mp4"
    first, second = (VideoWriter(path, 64, 64, None, 60, {}) for _ in range(2))
    first.write(frames_of(1))
    second.write(frames_of(12))
    first.write(frames_of(59))
    with pytest.raises(OutputError, match="meanwhile"):
        second.write(frames_of(48))
    second.close()
    first.close()
    assert len(decoded(path)) == 60 and names(tmp_path) == ["out.mp4"]


def test_a_run_holds_its_receipt_before_it_loads_anything(inputs, tmp_path):
    pipeline = LiveAvatarPipeline.from_pretrained(threads=1)
    job = pipeline(inputs / "portrait.png", inputs / "voice.wav", size="64x64")
    tried = []

    def again(event) -> None:
        if not tried:
            tried.append(generate(inputs, out=tmp_path / "out.mp4"))

    assert job.save(tmp_path / "out.mp4", callback=again).status == "complete"
    job.close()
    refused(tried[0], "out.json", "another run")
    assert receipt(tmp_path)["status"] == "complete" and names(tmp_path) == ["out.json", "out.mp4"]


CLAIMS = """
import os, signal, sys
from pathlib import Path
from liveavatar.files import OutputClaim
claim = OutputClaim(Path(sys.argv[1]))
print("claimed", flush=True)
signal.pause()
"""


def test_a_claim_ends_with_its_process(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{}")
    command = [sys.executable, "-c", CLAIMS, str(path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "claimed\n"
        with pytest.raises(OutputError, match="another run"):
            OutputClaim(path)
        process.kill()
    OutputClaim(path).release()
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("frames", [1, 48])
def test_somebody_replaces_the_file_while_it_grows(tmp_path, frames):
    path = tmp_path / "out.mp4"
    with pytest.raises(OutputError, match=r"meanwhile"), VideoWriter(path, 64, 64, None, 60, {}) as writer:
        writer.write(frames_of(frames))
        (tmp_path / "other").write_bytes(b"of somebody else")
        (tmp_path / "other").replace(path)
        writer.write(frames_of(60 - frames))
    assert path.read_bytes() == b"of somebody else" and names(tmp_path) == ["out.mp4"]


def _linked(folder: Path, how: str) -> Path:
    """Another name of voice.mp4."""
    link = folder / "other.mp4"
    if how == "hard link":
        link.hardlink_to(folder / "voice.mp4")
    elif how == "link":
        link.symlink_to("voice.mp4")
    elif how == "upper case":
        link = folder / "VOICE.mp4"
    return folder / "." / "voice.mp4" if how == "path" else link


@pytest.mark.parametrize("how", ["path", "link", "hard link", "upper case"])
def test_an_input_is_no_output_by_any_name(tmp_path, how):
    write_inputs(tmp_path, 0.3)
    (tmp_path / "voice.wav").rename(tmp_path / "voice.mp4")
    before = (tmp_path / "voice.mp4").read_bytes()
    out = _linked(tmp_path, how)
    refused(generate(tmp_path, audio=tmp_path / "voice.mp4", out=out, receipt=tmp_path / "r.json"), "made from")
    assert (tmp_path / "voice.mp4").read_bytes() == before and not (tmp_path / "r.json").exists()


def test_the_model_is_no_output_either(inputs, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(PROJECT / "liveavatar" / "mini" / "model", model)
    weights = next(model.glob("*.safetensors"))
    (tmp_path / "out.mp4").hardlink_to(weights)
    refused(generate(inputs, model=model, out=tmp_path / "out.mp4"), "out.mp4", "made from")
    config = (model / "config.json").read_bytes()
    refused(generate(inputs, model=model, out=tmp_path / "b.mp4", receipt=model / "config.json"), "config.json")
    assert (model / "config.json").read_bytes() == config and names(tmp_path) == ["model", "out.mp4"]


@pytest.mark.parametrize("one", ["a.mp4", "A.MP4"])
def test_video_and_receipt_are_two_files(tmp_path, one):
    write_film(tmp_path / "a.mp4", 1, None)
    for video in ("a.mp4", "new.mp4"):
        name = one if video == "a.mp4" else one.replace("a", "new").replace("A", "New")
        with pytest.raises(OutputError, match="both"):
            check_outputs(tmp_path / video, tmp_path / name)


@pytest.mark.parametrize("content", ['{"schema": "mine"}', "[1]", "text", '{"status": "complete"}', "[" * 10**5])
def test_a_receipt_replaces_no_other_file(inputs, tmp_path, content):
    (tmp_path / "out.json").write_text(content)
    refused(generate(inputs, out=tmp_path / "out.mp4"), "out.json", "out.liveavatar.json")
    assert (tmp_path / "out.json").read_text() == content and names(tmp_path) == ["out.json"]


def test_a_receipt_replaces_a_receipt_and_follows_a_link(inputs, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "out.json").symlink_to("kept/real.json")
    (tmp_path / "kept" / "real.json").touch()  # empty: nothing is lost
    for _ in range(2):
        assert generate(inputs, out=tmp_path / "out.mp4").code == 0
        assert (tmp_path / "out.json").is_symlink() and receipt(tmp_path / "kept", "real.json")["status"] == "complete"
    assert receipt(tmp_path)["schema"] == RECEIPT_SCHEMA
    assert names(tmp_path / "kept") == ["real.json"]


@pytest.fixture
def special(tmp_path):
    """A pipe and a socket, under names of each kind that is written."""
    kinds = {}
    with socket.socket(socket.AF_UNIX) as bound, pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)  # names of sockets are short
        bound.bind("socket")
        for suffix in ("mp4", "json", "png"):
            os.mkfifo(f"pipe.{suffix}")
            Path(f"socket.{suffix}").symlink_to("socket")
            Path(f"link.{suffix}").symlink_to(f"pipe.{suffix}")
        kinds = {path: path.stat().st_mode for path in tmp_path.iterdir()}
        yield tmp_path
    assert {path: path.stat().st_mode for path in tmp_path.iterdir()} == kinds


@pytest.mark.parametrize("kind", ["pipe", "socket", "link"])
def test_pipes_and_sockets_are_never_replaced(inputs, special, kind):
    what = "a socket" if kind == "socket" else "a pipe"
    refused(generate(inputs, out=special / f"{kind}.mp4"), f"{kind}.mp4", what)
    refused(generate(inputs, out=special / "a.mp4", receipt=special / f"{kind}.json"), f"{kind}.json", what)
    refused(run("repair", special / f"{kind}.mp4"), f"{kind}.mp4", what)
    refused(run("doctor", "--quick", "--out", special / f"{kind}.json"), f"{kind}.json", what)
    refused(run("bench", "model", "--device", "cpu", "--json", special / f"{kind}.json"), f"{kind}.json", what)
    refused(run("plan", "--plot", special / f"{kind}.png", "--simulate"), f"{kind}.png", what)
    with pytest.raises(OutputError, match=what):
        write_file(special / f"{kind}.json", b"{}")


def test_a_device_is_written_through(inputs, tmp_path):
    """A terminal of our own stands for the devices of the machine; no file can be made where it lies."""
    ours, theirs = os.openpty()
    try:
        device = Path(os.ttyname(theirs))
        assert is_stream(device) and stat.S_ISCHR(device.stat().st_mode)
        with pytest.raises(OutputError, match="a device"):
            OutputClaim(device)
        write_file(device, b"words\n")
        assert os.read(ours, 100).split() == [b"words"]
        (tmp_path / "link.json").symlink_to(device)
        assert is_stream(tmp_path / "link.json")
        (tmp_path / "a.mp4").symlink_to(device)
        refused(generate(inputs, out=tmp_path / "a.mp4"), "a.mp4", "a device")
        assert device.is_char_device() and (tmp_path / "a.mp4").is_symlink()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_receipt_goes_to_the_standard_output_alone(inputs, tmp_path):
    ran = generate(inputs, out=tmp_path / "out.mp4", receipt="-")
    assert ran.code == 0 and json.loads(ran.out)["status"] == "complete"
    assert names(tmp_path) == ["out.mp4"]
    printed = tmp_path / "printed.json"
    command = [sys.executable, "-m", "liveavatar", "generate", "--image", inputs / "portrait.png"]
    command += ["--audio", inputs / "voice.wav", "--size", "64x64", "--out", tmp_path / "out.mp4", "--threads", "1"]
    with printed.open("w") as stdout:
        number = printed.stat().st_ino
        subprocess.run([*command, "--receipt", "/dev/stdout"], cwd=PROJECT, stdout=stdout, check=True, timeout=90)
    assert json.loads(printed.read_text())["status"] == "complete" and printed.stat().st_ino == number


def test_reports_replace_no_other_file(tmp_path):
    mine = tmp_path / "package.json"
    mine.write_text('{"name": "mine"}')
    for words in (["doctor", "--quick", "--out"], ["bench", "model", "--device", "cpu", "--json"]):
        refused(run(*words, mine), "package.json", "replace")
    (tmp_path / "suite.json").write_text("[]")
    refused(run("bench", "suite", "--device", "cpu", "--json", tmp_path), "suite.json", "replace")
    assert mine.read_text() == '{"name": "mine"}' and (tmp_path / "suite.json").read_text() == "[]"


@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="needs root to make a file of another user")
def test_a_file_of_another_user_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"theirs")
    os.chown(path, 12345, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(OutputError, match="another user"):
        OutputClaim(path)


LONG = "ü" * 130
ODD_OUTPUTS = {
    "a long name": (f"{LONG}.mp4", "too long"),
    "a name of 255 bytes": ("x" * 251 + ".mp4", None),
    "a missing folder": ("missing/a.mp4", "does not exist"),
    "a loop of links": ("loop.mp4", "symbolic links"),
    "a link to nowhere": ("nowhere.mp4", "does not exist"),
    "a zero byte": ("a\0.mp4", "no file can be"),
    "nothing": ("", "no file can be"),
    "a number": (3, "no path"),
    "bytes": (b"a.mp4", "no path"),
    "a list": (["a.mp4"], "no path"),
    "None": (None, "no path"),
}


@pytest.mark.parametrize(("name", "said"), ODD_OUTPUTS.values(), ids=ODD_OUTPUTS.keys())
def test_odd_outputs_are_refused_in_a_sentence(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    Path("loop.mp4").symlink_to("loop.mp4")
    Path("nowhere.mp4").symlink_to("gone/a.mp4")
    before = names(tmp_path)
    if said:
        with pytest.raises(OutputError, match=said):
            check_outputs(name)
        if isinstance(name, str) and name:
            with pytest.raises(OutputError, match=said):
                check_outputs("good.mp4", name)
    else:
        check_outputs(name, "a.json")
        write_film(Path(name), 30, None)
        assert len(decoded(Path(name))) == 30
        Path(name).unlink()
    assert names(tmp_path) == before


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
from media.videos import frames_of, sound_of
from liveavatar.media import mp4
from liveavatar.media.video import VideoWriter
frames, number, when = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def killed(*_):
    os.kill(os.getpid(), number)

with VideoWriter(Path(sys.argv[1]), 64, 64, sound_of(64000, 16000), 100, {}) as writer:
    for start in range(0, frames, 12):
        writer.write(frames_of(12, start=start))
    if when == "now":
        killed()
    mp4._copy_packets = killed
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(("frames", "when"), [(0, "now"), (12, "now"), (60, "now"), (60, "while it finishes")])
def test_at_any_moment_the_old_file_is_there_or_the_new_one_plays(tmp_path, number, frames, when):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"an earlier video")
    command = [sys.executable, "-c", KILLED, str(path), str(frames), str(int(number)), when]
    assert subprocess.run(command, cwd=PROJECT, timeout=60, check=False).returncode == -number
    if frames < 24:
        assert path.read_bytes() == b"an earlier video" and names(tmp_path) == ["out.mp4"]
        return
    assert 36 <= len(decoded(path)) <= 60
    ran = run("repair", path)
    assert ran.code == 0 and "ordinary MP4 now" in ran.out, ran
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == len(decoded(path)) and container.start_time == 0
    assert names(tmp_path) == ["out.mp4"]
