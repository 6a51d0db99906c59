"""The judge's measures say what they should, and can say the opposite: judged are drawn videos, spoiled on purpose."""

import dataclasses
import functools
import json
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from liveavatar.config import FPS
from liveavatar.mini import evaluate
from liveavatar.mini.exam import Exam, command, drawn, plain
from liveavatar.mini.judge import FAULTS, VideoRequest
from liveavatar.mini.showing import endurance, people_sheet, watch
from liveavatar.mini.world.measure import background_word
from liveavatar.mini.world.palette import BACKGROUNDS
from liveavatar.mini.world.sample import Sample

Spoil = Callable[[np.ndarray, int], np.ndarray]
"""Changes a block [n, H, W, 3] whose first frame has this number."""


def vae(frames: np.ndarray) -> np.ndarray:
    """A VAE that loses a little."""
    return np.where(frames > 250, frames, frames + 3)


class Pencil:
    """Draws what a perfect network with this VAE would make, then spoils it. Knows examples by picture and prompt."""

    def __init__(self, spoil: Spoil = lambda block, first: block):
        self.spoil, self.takes = spoil, []
        self.known: dict[tuple[bytes, str, int], Sample] = {}

    def knows(self, *examples: Sample) -> None:
        for e in examples:
            self.known[e.reference.tobytes(), e.prompt.text, len(e.sound.samples)] = e

    def frames(self, take: VideoRequest) -> Iterator[np.ndarray]:
        self.takes.append(take)
        example = self.known.get((take.picture.tobytes(), take.prompt, len(take.wave)))
        total = len(take.wave) * FPS // 16_000
        for first in range(0, total, 12):
            part = range(first, min(first + 12, total))
            if example is None or not take.wave.any():
                block = np.repeat(take.picture[None], len(part), 0)
            else:
                block = drawn(example, part)
            yield self.spoil(vae(block), first)

    def rebuilt(self, picture: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return vae(frames[: len(frames) // 12 * 12])


@functools.cache
def people() -> Exam:
    """Two people, drawn once."""
    return Exam(Pencil(), 2)


def exam(spoil: Spoil = lambda block, first: block) -> Exam:
    pencil = Pencil(spoil)
    examination = Exam(pencil, 1)
    examination.talkers, examination.neutrals = people().talkers[:2], people().neutrals[:1]
    pencil.knows(*examination.talkers, *examination.neutrals)
    return examination


@functools.cache
def asked(number: int) -> Sample:
    return command(number)


def painted(block: np.ndarray, first: int) -> np.ndarray:
    """The upper corners in another colour."""
    block = block.copy()
    block[:, :40] = (250, 20, 20)
    return block


@pytest.mark.usefixtures("speech")
def test_the_truth_itself_is_as_good_as_the_vae() -> None:
    judged = people()
    judged.engine.knows(*judged.talkers, *judged.neutrals)
    talking, identity = judged.talking(), judged.identity()
    assert talking["lip_correlation"] > 0.98
    assert talking["lip_correlation"] == pytest.approx(talking["vae_lip_correlation"], abs=0.01)
    assert len(talking["lip_correlation_by_person"]) == 2
    assert talking["best_lag_frames"] == 0
    assert talking["truth_ratio"] == pytest.approx(1, abs=0.05)
    assert identity["at_2_s"] == pytest.approx(1, abs=0.01)
    assert len(identity["at_2_s_by_person"]) == 2


@pytest.mark.usefixtures("speech")
def test_a_late_video_shows_its_lag() -> None:
    """Blocks come in order, so that a video three frames late begins with three frames of the block before."""
    held: list[np.ndarray] = []

    def late(block: np.ndarray, first: int) -> np.ndarray:
        before = np.repeat(block[:1], 3, 0) if first == 0 else held.pop()
        held.append(block[-3:])
        return np.concatenate([before, block[:-3]]) if len(block) > 3 else before[: len(block)]

    assert exam(late).talking()["best_lag_frames"] == 3


@pytest.mark.usefixtures("speech")
def test_a_repainted_wall_is_another_picture() -> None:
    judged = exam(painted)
    assert judged.identity()["at_2_s"] > 1.3
    assert judged.talking()["truth_ratio"] > 1.3


@pytest.mark.usefixtures("speech")
def test_a_frozen_picture_keeps_its_likeness_but_is_not_the_truth() -> None:
    """Why identity alone is not enough to judge by."""
    first: list[np.ndarray] = []

    def frozen(block: np.ndarray, number: int) -> np.ndarray:
        if number == 0:
            first[:] = [block[0]]
        return np.repeat(first[0][None], len(block), 0)

    judged = exam(frozen)
    talking = judged.talking()
    assert judged.identity()["at_2_s"] <= 1
    assert talking["truth_ratio"] > 1.1
    assert (talking["lip_correlation"], talking["best_lag_frames"]) == (0, None)


@pytest.mark.usefixtures("speech")
def test_faults_are_made_and_told_apart() -> None:
    judged = exam()
    for fault in FAULTS[1:]:
        found = judged.fault(fault)
        assert set(found) == {"lip_correlation", "best_lag_frames", "truth_ratio", "identity_at_2_s"}
        takes = judged.engine.takes[-2:]
        assert {take.fault for take in takes} == {fault}
        for take in takes:
            heard_other = take.other_wave is not None
            assert heard_other == (fault == "other sound")
            if heard_other:
                assert len(take.other_wave) == len(take.wave)
                assert not np.array_equal(take.other_wave, take.wave)


@pytest.mark.usefixtures("speech")
def test_prompts_of_likeness_ask_for_nothing_new() -> None:
    example = exam().example(0, 1.0)
    appearance = plain(example).prompt.appearance(example.identity)
    assert (appearance.background, appearance.mood) == (example.identity.background, "neutral")
    assert plain(example).prompt == plain(example).prompt


@pytest.mark.usefixtures("speech")
def test_every_wall_and_mood_is_asked_for_and_never_the_own_wall() -> None:
    tries = [asked(i) for i in range(9)]
    assert {a.prompt.background for a in tries} == set(BACKGROUNDS)
    assert [sum(a.prompt.mood == mood for a in tries[:8]) for mood in ("cheerful", "stern")] == [4, 4]
    assert tries[0].prompt.mood != tries[8].prompt.mood
    assert all(a.prompt.background != a.identity.background_word for a in tries)


@pytest.mark.usefixtures("speech")
def test_a_shut_mouth_passes_silence_and_an_open_one_does_not() -> None:
    assert exam().silence()["mean_opening"] < 0.05

    def gaping(block: np.ndarray, first: int) -> np.ndarray:
        block = block.copy()
        block[:, 88:98, 56:72] = (84, 20, 32)
        return block

    assert exam(gaping).silence()["worst_person"] > 0.05


@pytest.mark.usefixtures("speech")
def test_obedience_tells_walls_from_moods() -> None:
    """A network that obeys in everything, and one that knows walls but no moods."""
    obeying, moodless = Pencil(), Pencil()
    example = asked(0)
    obeying.knows(example)
    moodless.knows(dataclasses.replace(example, prompt=dataclasses.replace(example.prompt, mood=None)))
    found = Exam(obeying, 1).obedience(1)
    assert (found["wall"], found["mood"]) == (1, 1)
    found = Exam(moodless, 1).obedience(1)
    assert (found["wall"], found["mood"]) == (1, 0)
    assert found["mood_asked_and_seen"] == {example.prompt.mood: {"neutral": 1}}


@pytest.mark.usefixtures("speech")
def test_drift_is_seen_at_the_end_of_a_long_video_and_not_before() -> None:
    def fading(block: np.ndarray, first: int) -> np.ndarray:
        return block if first < 100 else painted(block, first)

    judged = exam(fading)
    long = plain(judged.example(0, 8.0))
    judged.engine.knows(long)
    figures, rows = endurance(judged, 8.0, 1, with_truth=True)
    assert figures["at_2_s"] == pytest.approx(1, abs=0.01)
    assert figures["at_end"] > 1.3
    assert figures["by_second"] == {"2": figures["at_2_s"], "8": figures["at_end"]}
    made, truth = rows
    assert made.captions[0] == "reference" and made.captions[-1] == "0:08"
    assert len(made.pictures) == len(made.captions) == len(truth.pictures)
    assert background_word(made.pictures[1]) == background_word(truth.pictures[1])
    assert tuple(made.pictures[-1][0, 0]) == (250, 20, 20)


@pytest.mark.usefixtures("speech")
def test_a_long_video_is_let_go_while_it_is_watched() -> None:
    example = exam().neutrals[0]
    alive: list[weakref.ref[np.ndarray]] = []

    def blocks() -> Iterator[np.ndarray]:
        for _ in range(50):
            block = np.zeros((12, 128, 128, 3), np.uint8)
            alive.append(weakref.ref(block))
            yield block
            del block
            assert sum(ref() is not None for ref in alive) <= 2

    watched = watch(blocks(), example, [range(10, 20)], [3, 599])
    assert sorted(watched.distances) == list(range(10, 20))
    assert sorted(watched.pictures) == [3, 599]
    assert all(picture.base is None for picture in watched.pictures.values())


@pytest.mark.usefixtures("speech")
def test_a_person_is_shown_once_a_second() -> None:
    judged = exam()
    judged.engine.knows(judged.example(0, 8.2))
    made, truth = people_sheet(judged, 1, with_truth=True)
    assert made.captions == ["reference", "1 s", "2 s", "3 s", "4 s", "5 s", "6 s", "7 s", "8 s"]
    assert np.array_equal(made.pictures[0], judged.example(0, 8.2).reference)
    for shown, true in zip(made.pictures[1:], truth.pictures[1:], strict=True):
        assert np.array_equal(shown, vae(true))


@pytest.mark.usefixtures("speech")
def test_the_command_prints_every_figure(monkeypatch, capsys, tmp_path) -> None:
    sheet, out = tmp_path / "sheet.png", tmp_path / "figures.json"
    words = f"evaluate --people 1 --tries 1 --threads 1 --sheet-people 1 --sheet {sheet} --out {out}".split()
    monkeypatch.setattr("sys.argv", words)
    monkeypatch.setattr(evaluate, "ExamEngine", lambda *given: Pencil())
    assert evaluate.main() == 0
    shown = capsys.readouterr()
    figures = json.loads(shown.out)
    assert figures == json.loads(out.read_text())
    assert list(figures) == ["run", "speed", "talking", "identity", "faults", "silence", "obedience", "passes"]
    assert set(figures["faults"]) == set(FAULTS[1:])
    assert "identity with no sink: 1 of 1" in shown.err
    assert sheet.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--long 2", "at least 4"),
        ("--long nan", "at least 4"),
        ("--long-sheet x.png", "--long 600"),
        ("--sheet-only", "--sheet PNG"),
        ("--people 0", "less than 1"),
    ],
)
def test_commands_that_make_no_sense_are_refused(monkeypatch, capsys, words: str, told: str) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", *words.split()])
    with pytest.raises(SystemExit) as refused:
        evaluate.main()
    assert refused.value.code == 2
    assert told in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_the_work(monkeypatch, capsys, tmp_path) -> None:
    for words, told in ((["--sheet", str(tmp_path / "no" / "x.png")], "no folder"), (["--out", str(tmp_path)], "is a")):
        monkeypatch.setattr("sys.argv", ["evaluate", *words])
        assert evaluate.main() == 2
        assert told in capsys.readouterr().err
