"""`generate --engine ray` makes the same video in worker processes; `workers` lists, shows and ends those."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.runs import run, write_inputs

from liveavatar.distributed import registry
from liveavatar.distributed.registry import WorkerFile, process_start_time


def test_workers_make_the_frames_that_this_process_makes(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    inputs = write_inputs(tmp_path, 0.5)
    image, audio = inputs / "portrait.png", inputs / "voice.wav"
    made = []
    for name, how in (("own", ()), ("workers", ("--engine", "ray", "--restarts", 1))):
        out = tmp_path / f"{name}.mp4"
        words = ("--model", "untrained", "--size", "64x64", "--stages", "1x2", "--devices", "cpu", "--threads", 1)
        ran = run("generate", "--image", image, "--audio", audio, "--out", out, *words, *how)
        assert ran.code == 0, ran.err
        receipt = json.loads(out.with_suffix(".json").read_text())
        assert receipt["notices"] == []
        made.append(receipt["frames_sha256"])
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "how, nearest", [(("--restarts", 1), "--engine ray"), (("--engine", "ray", "--restarts", -1), "Use 0 for never")]
)
def test_restarts_that_cannot_be_are_refused(how, nearest, tmp_path):
    inputs = write_inputs(tmp_path, 0.5)
    image, audio = inputs / "portrait.png", inputs / "voice.wav"
    ran = run("generate", "--image", image, "--audio", audio, "--out", tmp_path / "a.mp4", *how)
    assert ran.code == 2
    assert nearest in ran.err


def test_an_unknown_engine_is_refused(tmp_path):
    inputs = write_inputs(tmp_path, 0.5)
    image, audio = inputs / "portrait.png", inputs / "voice.wav"
    ran = run("generate", "--image", image, "--audio", audio, "--out", tmp_path / "a.mp4", "--engine", "magic")
    assert ran.code == 2
    assert "local or ray" in ran.err


class Sleeper:
    """A process that does nothing, with what it says in a file."""

    def __init__(self, log: Path):
        log.parent.mkdir(mode=0o700, exist_ok=True)
        with log.open("wb") as file:
            code = "import time; print(*range(70), sep='\\n', flush=True); time.sleep(100)"
            self.process = subprocess.Popen([sys.executable, "-c", code], stdout=file, stderr=subprocess.DEVNULL)
        self.pid, self.log = self.process.pid, log
        end = time.monotonic() + 60
        while not log.read_bytes().endswith(b"69\n"):
            assert self.sleeps and time.monotonic() < end, "it did not say what it has to say"
            time.sleep(0.01)

    @property
    def sleeps(self) -> bool:
        return self.process.poll() is None


class Machine:
    """Drivers and their workers in a folder of their own, so that no real ones are touched."""

    def __init__(self, folder: Path):
        self.folder, self.sleepers = folder, list[Sleeper]()

    def sleeper(self, name: str) -> Sleeper:
        self.sleepers.append(Sleeper(self.folder / name))
        return self.sleepers[-1]

    def start_workers(self, driver: int, count: int = 2, born: str | None = None) -> list[Sleeper]:
        """So many listed workers of a process, which is this one as far as its birth goes."""
        folder = f"la-{driver}-test"
        workers = [self.sleeper(f"{folder}/worker-{driver}-{number}.log") for number in range(count)]
        self.listed(driver, workers, born)
        return workers

    def listed(self, driver: int, workers: list[Sleeper], born: str | None = None) -> Path:
        folder = self.folder / f"la-{driver}-test"
        folder.mkdir(mode=0o700, exist_ok=True)
        WorkerFile(folder).write((w.pid, number, f"cuda:{number}", w.log) for number, w in enumerate(workers))
        (file,) = folder.glob("workers-*.json")
        page = json.loads(file.read_text())
        page["driver"] |= {
            "pid": driver,
            "birth": born or process_start_time(driver),
            "command": f"python make-{driver}.py",
        }
        file.write_text(json.dumps(page))
        return file


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    if process_start_time(os.getpid()) is None:
        pytest.skip("this system does not tell who a process is")
    monkeypatch.setattr(registry, "short_folder", lambda: tmp_path)
    machine = Machine(tmp_path)
    yield machine
    for sleeper in machine.sleepers:
        sleeper.process.kill()
        sleeper.process.wait()


def ended_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_machine_without_workers(machine: Machine) -> None:
    ran = run("workers")
    assert ran.code == 0 and ran.out.endswith("No worker processes on this machine.\n")
    assert json.loads(run("workers", "--json").out.splitlines()[-1]) == []  # Ray may have said something before
    refused = run("workers", "--stop", 4711)
    assert refused.code == 2 and "There are no workers." in refused.err


def test_workers_are_listed_by_their_process(machine: Machine) -> None:
    first, second = machine.start_workers(os.getpid())
    second.process.kill()
    second.process.wait()
    (machine.folder / "la-1-other").mkdir(mode=0o700)
    (machine.folder / "something").mkdir()
    (machine.folder / f"la-{os.getpid()}-test" / "workers-x.json").write_text('{"driver": 3')
    one, this = sorted(json.loads(run("workers", "--json").out), key=lambda driver: driver["pid"])
    assert (one["pid"], one["workers"]) == (1, [])
    assert this["command"] == f"python make-{os.getpid()}.py" and not this["left_over"]
    rows = [(w["pid"], w["stage"], w["device"], w["state"], w["log"]) for w in this["workers"]]
    assert rows == [
        (first.pid, 0, "cuda:0", "alive", str(first.log)),
        (second.pid, 1, "cuda:1", "dead", str(second.log)),
    ]
    assert this["workers"][0]["memory"] > 1e6 and this["workers"][1]["memory"] is None
    shown = run("workers").out
    assert all(word in shown for word in (f"process {os.getpid()}", "alive", "dead", "0:0", str(second.log), "MB"))


def test_the_worker_of_encoders_and_vae_is_listed_after_those_of_stages(machine: Machine) -> None:
    codec = machine.sleeper(f"la-{os.getpid()}-test/codec.log")
    WorkerFile(codec.log.parent).write([(codec.pid, None, "cpu", codec.log)])
    other = machine.sleeper(f"la-{os.getpid()}-test/stage.log")
    WorkerFile(other.log.parent).write([(other.pid, 0, "cuda:0", other.log)])
    (this,) = json.loads(run("workers", "--json").out)
    assert [(w["pid"], w["stage"]) for w in this["workers"]] == [(other.pid, 0), (codec.pid, None)]
    assert "codec" in run("workers").out
    assert run("workers", "--stop", os.getpid()).code == 0 and not codec.sleeps and not other.sleeps


def test_the_end_of_logs_is_shown(machine: Machine) -> None:
    first, second = machine.start_workers(os.getpid())
    for log in (first.log, second.log):
        log.write_text("".join(f"line {number} of {log.name}\n" for number in range(70)))
    one = run("workers", "--log", second.pid).out.splitlines()
    assert len(one) == 51 and str(second.pid) in one[0] and one[1].endswith(f"line 20 of {second.log.name}")
    both = run("workers", "--log", "--lines", 3).out
    assert both.count(f"of {first.log.name}") == both.count(f"of {second.log.name}") == 3
    rows = json.loads(run("workers", "--log", "--json", "--lines", 1).out)
    assert [(w["pid"], w["lines"]) for w in rows] == [(w.pid, [f"line 69 of {w.log.name}"]) for w in (first, second)]
    assert run("workers", "--log", "--lines", 0).code == 2


def test_one_worker_those_of_one_process_or_all_are_stopped(machine: Machine) -> None:
    other = machine.sleeper("other-driver.txt")
    first, second = machine.start_workers(os.getpid())
    third, fourth = machine.start_workers(other.pid)
    alone = run("workers", "--stop", first.pid)
    assert alone.code == 0 and f"{first.pid} ended" in alone.out and str(second.pid) not in alone.out
    assert [w.sleeps for w in (first, second, third, fourth)] == [False, True, True, True]
    assert run("workers", "--stop", other.pid).code == 0
    assert [w.sleeps for w in (second, third, fourth, other)] == [True, False, False, True]
    rest = run("workers", "--stop", "--json")
    assert rest.code == 0 and not second.sleeps and other.sleeps
    ended = {row["pid"] for row in json.loads(rest.out)["workers"] if row["ended"]}
    assert ended == {second.pid} and json.loads(rest.out)["removed"] == []


def test_what_an_ended_process_has_left_is_named_and_removed(machine: Machine) -> None:
    gone = ended_pid()
    (orphan,) = machine.start_workers(gone, 1, born="before/1")
    successor = machine.sleeper("successor.txt")  # has the number that another driver had
    machine.listed(successor.pid, [], born="before/2")
    (machine.folder / f"la-{gone}-unlisted").mkdir(mode=0o700)
    assert run("workers").out.count("left over") == 3
    assert run("workers", "--stop", orphan.pid).code == 0 and not orphan.sleeps
    assert orphan.log.exists(), "one worker was meant, not what else is there"
    ran = run("workers", "--stop")
    assert ran.code == 0 and ran.out.count(" removed") == 3
    assert not list(machine.folder.glob("la-*")) and successor.sleeps


def test_no_process_is_stopped_that_is_not_surely_a_worker(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its number was a worker's once; it speaks into another file; it writes into the log, but was born at another time.
    reused, elsewhere, younger = machine.start_workers(os.getpid(), 3)
    file = next((machine.folder / f"la-{os.getpid()}-test").glob("workers-*.json"))
    page = json.loads(file.read_text())
    page["workers"][0] |= {"start_time": "some-boot/1", "log": str(file.parent / "none.log")}
    page["workers"][1] |= {"log": str(file.parent / "none.log")}
    page["workers"][2] |= {"start_time": page["workers"][2]["start_time"] + "1"}
    file.write_text(json.dumps(page))
    for number in ((), (reused.pid,), (elsewhere.pid,), (younger.pid,), (os.getpid(),)):
        ran = run("workers", "--stop", *number)
        assert "had ended before" in ran.out and "0 ended" in ran.out
    page["workers"][1] |= {"start_time": None}  # a system that did not tell
    file.write_text(json.dumps(page))
    ran = run("workers", "--stop", elsewhere.pid)
    assert ran.code == 1 and "left alone" in ran.out
    assert all(w.sleeps for w in (reused, elsewhere, younger))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert (
        json.loads(run("workers", "--json").out.splitlines()[-1]) == []
    )  # Ray may have said something before, "what another user has written is not believed"


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("forged", ["folder", "page"])
def test_a_page_of_another_user_ends_nothing(machine: Machine, forged: str) -> None:
    (victim,) = machine.start_workers(os.getpid(), 1)
    (page,) = (machine.folder / f"la-{os.getpid()}-test").glob("workers-*.json")
    os.chown(page.parent if forged == "folder" else page, 65534, 65534)
    for number in ((), (os.getpid(),), (victim.pid,)):
        run("workers", "--stop", *number)
    assert victim.sleeps and page.exists()
    assert str(victim.pid) not in run("workers", "--json").out


@pytest.mark.parametrize("way", ["open folder", "open page", "link to a page", "link to a folder"])
def test_a_page_that_others_can_have_written_ends_nothing(machine: Machine, way: str) -> None:
    (victim,) = machine.start_workers(os.getpid(), 1)
    folder = machine.folder / f"la-{os.getpid()}-test"
    (page,) = folder.glob("workers-*.json")
    if way.startswith("open"):
        folder.chmod(0o777) if "folder" in way else page.chmod(0o666)
    else:
        real = page if way.endswith("page") else folder
        real.rename(machine.folder / "elsewhere")
        real.symlink_to(machine.folder / "elsewhere")
    run("workers", "--stop")
    assert victim.sleeps
    assert str(victim.pid) not in run("workers", "--json").out


@pytest.mark.parametrize(
    "changed",
    [
        {"program": "/usr/bin/true"},
        {"program": None},
        {"pid": "1"},
        {"stage": "first"},
        {"since": "now"},
        {"log": "/etc/passwd"},
    ],
)
def test_a_damaged_page_ends_nothing_and_is_listed(machine: Machine, changed: dict[str, object]) -> None:
    (victim,) = machine.start_workers(os.getpid(), 1)
    (page,) = (machine.folder / f"la-{os.getpid()}-test").glob("workers-*.json")
    written = json.loads(page.read_text())
    written["workers"][0] |= changed
    page.write_text(json.dumps(written))
    assert run("workers").code == 0
    shown = run("workers", "--log").out
    run("workers", "--stop")
    assert victim.sleeps and "root:" not in shown


def test_a_link_in_the_place_of_a_log_is_not_shown(machine: Machine) -> None:
    (worker,) = machine.start_workers(os.getpid(), 1)
    secret = machine.folder / "secret"
    secret.write_text("a secret of the user")
    worker.log.unlink()
    worker.log.symlink_to(secret)
    assert "a secret" not in run("workers", "--log").out


def test_listing_needs_no_ray(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (worker,) = machine.start_workers(os.getpid(), 1)
    assert str(worker.pid) in run("workers").out
    assert run("workers", "--stop", worker.pid).code == 0 and not worker.sleeps


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--address", "auto"), "Add --engine ray"),
        (("--engine", "ray", "--token-file", "token"), "Add --address"),
        (("--engine", "ray", "--address", "studio1"), "HOST:PORT"),
        (("--engine", "ray", "--address", "ray://studio1:10001"), "cluster join studio1:6379"),
        (("--engine", "ray", "--address", "127.0.0.1:1"), "No Ray cluster answers"),
        (("--engine", "ray", "--address", "127.0.0.1:1", "--token-file", "none"), "token file none"),
        (("--engine", "ray", "--devices", "studio2/cpu"), "is not of this machine"),
        (("--devices", "studio2/cpu"), "is not of this machine"),
        (("--devices", "studio2/"), "MACHINE/DEVICE"),
    ],
)
def test_machines_that_cannot_be_reached_are_refused(tmp_path, words, said):
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    inputs = write_inputs(tmp_path, 0.5)
    image, audio = inputs / "portrait.png", inputs / "voice.wav"
    ran = run("generate", "--image", image, "--audio", audio, "--out", tmp_path / "a.mp4", *words)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert not (tmp_path / "a.mp4").exists()
