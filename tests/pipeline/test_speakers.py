"""Several speakers in one picture, through the whole pipeline: heard where they are, mixed in the file, or refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

import liveavatar.codec
import liveavatar.request
from liveavatar import Speaker
from liveavatar.components import open_components
from liveavatar.conditioning import encode_conditioning
from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.encoders.block_features import StackedFeatures
from liveavatar.engine.backend import LocalBackend
from liveavatar.errors import OutputError, SpeakerError
from liveavatar.media.audio import AudioClip, mono_16k
from liveavatar.media.mixing import mix_audio
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.placement import Placement
from liveavatar.planner import GIB, PlanOptions, choose_plan, workspace_bytes
from liveavatar.planner.disk import TemporaryBytes
from liveavatar.planner.hardware import Hardware
from liveavatar.request import Request, resolve
from liveavatar.session import VideoTask
from liveavatar.speakers import open_audio

REQUEST = Request(size="128x64", steps=2, seed=9)
WIDTH, HEIGHT = 256, 128
PICTURE = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def tone(seconds: float, hertz: float, rate: int = 16_000) -> AudioClip:
    t = np.arange(int(seconds * rate)) / rate
    return AudioClip.from_array((0.3 * np.sin(2 * np.pi * hertz * t) * np.sin(9 * t)).astype(np.float32), rate)


def side(left: bool, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """A face in the left or the right half of the picture."""
    width, height = size
    mask = np.zeros((height, width), bool)
    column = 0 if left else width // 2
    mask[height // 4 : height, column + width // 16 : column + 7 * width // 16] = True
    return mask


A, B = tone(1.2, 180), tone(0.5, 260, 22_050)
TWO = [Speaker(A, side(True)), Speaker(B, side(False))]


def pipeline_with(stages: str = "1x1") -> LiveAvatarPipeline:
    return LiveAvatarPipeline(open_components("untrained"), LocalBackend(Placement(("cpu",), stages, threads=1)))


@pytest.fixture(scope="module")
def pipeline() -> LiveAvatarPipeline:
    return pipeline_with()


def latents(pipeline: LiveAvatarPipeline, audio, image=PICTURE, **options) -> torch.Tensor:
    with contextlib.closing(pipeline(image, audio, request=dataclasses.replace(REQUEST, **options))) as video:
        return video.latents()


@pytest.fixture(scope="module")
def two(pipeline) -> torch.Tensor:
    return latents(pipeline, TWO)


@pytest.mark.parametrize("stages", ["1x2", "2x1", "2x2"])
def test_any_cut_makes_the_same_bits(two, stages):
    assert torch.equal(latents(pipeline_with(stages), TWO), two)


def test_who_says_what_where_matters(pipeline, two):
    assert torch.allclose(latents(pipeline, TWO[::-1]), two, atol=1e-3), "but not their order"
    swapped = [Speaker(A, side(False)), Speaker(B, side(True))]
    assert not torch.equal(latents(pipeline, swapped), two)
    assert not torch.equal(latents(pipeline, mix_audio([A, B], "both")), two)


def test_one_speaker_without_a_mask_is_one_voice(pipeline):
    alone = latents(pipeline, A)
    assert torch.equal(latents(pipeline, [Speaker(A)]), alone) and torch.equal(latents(pipeline, Speaker(A)), alone)


def test_of_one_speaker_with_a_mask_the_rest_of_the_picture_hears_silence(pipeline, two):
    left, silence = side(True), AudioClip.from_array(np.zeros(len(A.samples), np.float32), A.rate)
    alone = pipeline.describe(PICTURE, Speaker(A, left), REQUEST)
    assert [report.mask for report in alone.speaker_reports] == ["array", "the rest of the picture"]
    assert "one speaker, at array: the rest of the picture hears silence" in alone.resolved.notes
    assert np.array_equal(alone.audio.samples[:], A.samples[:]), "the sound of the file is as it was"
    named = latents(pipeline, [Speaker(A, left), Speaker(silence, ~left)])
    assert torch.equal(latents(pipeline, Speaker(A, left)), named) and not torch.equal(named, two)
    assert pipeline.describe(PICTURE, Speaker(A, "right"), REQUEST).speakers.masks.hears[1, :, 0].all()


def test_masks_may_overlap_a_little_and_that_is_told(pipeline):
    column = np.arange(WIDTH)[None].repeat(HEIGHT, 0)
    for shared, said in ((1, None), (6, "overlap: 5% of the smaller one is in both, and each place is whose mask")):
        two = [Speaker(A, column < WIDTH // 2 + shared), Speaker(B, column >= WIDTH // 2)]
        notes = pipeline.describe(PICTURE, two, REQUEST).resolved.notes
        assert any(said in note for note in notes) if said else not any("overlap" in note for note in notes)


def test_one_speaker_whose_mask_is_all_of_the_picture_is_one_voice(pipeline):
    whole = np.ones((HEIGHT, WIDTH), bool)
    assert pipeline.describe(PICTURE, Speaker(A, whole), REQUEST).speakers is None
    whole[:2, :2] = False
    seen = pipeline.describe(PICTURE, Speaker(A, whole), REQUEST).speakers
    assert seen.masks.hears[0].all() and seen.reports[1].share == 0, "too little is left to be anybody's"


def test_speakers_that_are_read_already_are_limited_and_mixed_alike():
    opened = open_audio(TWO)
    assert open_audio(opened) is opened
    limited, anew = open_audio(opened, 0.4), open_audio(TWO, 0.4)
    assert [clip.seconds for clip in limited.each] == [clip.seconds for clip in anew.each]
    np.testing.assert_array_equal(limited.audio.samples[:], anew.audio.samples[:])


def test_masks_are_of_any_size_and_cut_with_the_picture(pipeline, two):
    larger = (4 * WIDTH, 4 * HEIGHT)
    assert torch.equal(latents(pipeline, [Speaker(A, side(True, larger)), Speaker(B, side(False, larger))]), two)
    tall = np.concatenate([PICTURE, PICTURE])
    low = [np.concatenate([np.zeros_like(side(left)), side(left)]) for left in (True, False)]
    seen = pipeline.describe(tall, [Speaker(A, low[0]), Speaker(B, low[1])], REQUEST).speakers
    assert seen.reports[0].share == pytest.approx(low[0].mean(), abs=0.06)


def test_a_half_of_the_picture_is_a_mask_by_name(pipeline):
    half = np.arange(WIDTH)[None].repeat(HEIGHT, 0) < WIDTH // 2
    drawn = pipeline.describe(PICTURE, [Speaker(A, half), Speaker(B, ~half)], REQUEST).speakers
    named = pipeline.describe(PICTURE, [Speaker(A, "left"), Speaker(B, "right")], REQUEST)
    assert np.array_equal(named.speakers.masks.hears, drawn.masks.hears)
    assert [report.mask for report in named.speaker_reports] == ["the left half", "the right half"]
    assert not any(path.name == "left" for path in named.inputs)


def test_what_each_says_is_encoded_with_silence_after_it(pipeline):
    encoded = pipeline.encode_audio(TWO)
    alone = pipeline.encode_audio(B)
    assert encoded.features.blocks == 3 and alone.features.blocks == 2
    padded = pipeline.encoders().encode_audio(mono_16k(B), 36, "silence")
    for b in range(3):
        block = encoded.features.block(b)
        assert block.shape[0] == 2 and torch.equal(block[1:], padded.block(b))
    assert any("speaker 2 (array) says nothing from 0.50 s on" in note for note in encoded.notes)


def test_a_voice_that_two_say_is_encoded_once(monkeypatch):
    calls = []
    encode = liveavatar.codec.encode_audio
    monkeypatch.setattr(liveavatar.codec, "encode_audio", lambda *a, **k: (calls.append(1), encode(*a, **k))[1])
    pipeline = pipeline_with()
    latents(pipeline, [Speaker(A, side(True)), Speaker(A, side(False))])
    assert len(calls) == 1
    latents(pipeline, TWO, seed=3)
    assert len(calls) == 2


def test_encoded_ahead_is_the_same(pipeline, two):
    audio = pipeline.encode_audio(TWO)
    context = pipeline.encode_prompt(REQUEST.prompt)
    with contextlib.closing(pipeline.prepare(REQUEST, PICTURE, audio, context)) as video:
        assert torch.equal(video.latents(), two) and video.spec.resolved.speaker_count == 2


def test_long_sounds_are_encoded_window_by_window_with_one_encoder(monkeypatch, two):
    monkeypatch.setattr(liveavatar.request, "LONG_AUDIO_SECONDS", 1.0)
    pipeline, opened = pipeline_with(), []
    codec = pipeline.backend.codec

    def watched(*where):
        encoders = codec(*where)
        load = encoders.audio_encoder
        encoders.audio_encoder = lambda *a: (opened.append(1), load(*a))[1]
        return encoders

    monkeypatch.setattr(pipeline.backend, "codec", watched)
    made = latents(pipeline, TWO)
    assert len(opened) == 1 and torch.allclose(made, two, atol=1e-3)


def test_receipt_comment_and_sound_tell_of_all(pipeline, tmp_path):
    for name, left in (("left.png", True), ("right.png", False)):
        Image.fromarray(side(left)).save(tmp_path / name)
    speakers = [Speaker(A, tmp_path / "left.png"), Speaker(B, tmp_path / "right.png")]
    with contextlib.closing(pipeline(PICTURE, speakers, request=REQUEST)) as video:
        receipt = video.save(tmp_path / "a.mp4")
        with pytest.raises(OutputError, match="left"):
            video.save(tmp_path / "left.png")
    assert [r.mask for r in receipt.speakers] == [str(tmp_path / "left.png"), str(tmp_path / "right.png")]
    assert [r.seconds for r in receipt.speakers] == [A.seconds, B.seconds]
    assert all(0.2 < r.share < 0.4 for r in receipt.speakers)
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["speakers"][1]["mask"].endswith("right.png") and saved["effective"]["speaker_count"] == 2
    with av.open(str(tmp_path / "a.mp4")) as file:
        comment = json.loads(file.metadata["comment"])
        sound = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], 1)
    assert comment["speakers"] == saved["speakers"]
    mixed = np.asarray(mix_audio([A, B], "both").samples)
    assert np.sqrt(np.square(sound).mean()) == pytest.approx(np.sqrt(np.square(mixed).mean()), rel=0.1)


def narrow(values: np.ndarray) -> np.ndarray:
    return values[:, : WIDTH // 2]


REFUSED = [
    ([], "0 speakers", "1 to 8"),
    ([Speaker(A, side(True)), Speaker(B)], "Speaker 2 (array) has no mask", "white where"),
    ([Speaker(A, side(True)), Speaker(B, np.zeros((HEIGHT, WIDTH)))], "speaker 2 (array) is empty", "white"),
    ([Speaker(A, side(True)), Speaker(B, np.ones((HEIGHT, WIDTH)))], "speaker 1 (array) and speaker 2", "no other's"),
    ([Speaker(A, side(True)), Speaker(B, narrow(side(True)))], "128x128, and the picture 256x128", "any size"),
    (
        [Speaker(A, side(True)), Speaker(tone(0.01, 200), side(False))],
        "Speaker 2 (array): The sound is 0.010 s",
        "0.025",
    ),
    ([Speaker(A, side(True)), Speaker("no.wav", side(False))], "Speaker 2 (no.wav): There is no sound", "path"),
    ([Speaker(A, "no.png"), Speaker(B, side(False))], "The mask of speaker 1 (array): There is no picture", "path"),
    ([Speaker(A, side(True)), Speaker(B, side(False).tolist())], "The mask of speaker 2 (array): A mask of", "NumPy"),
    ([Speaker(A, side(True)), Speaker(B, side(False).T)], "128x256, and the picture 256x128", "Turn the mask"),
    ([Speaker(A, side(True)), Speaker(B, side(False).astype(int))], "The mask of speaker 2 (array): A mask of", "bool"),
    ([A, B], "is no speaker", "Speaker("),
    ([Speaker(A, side(i == 0)) for i in range(9)], "9 speakers", "1 to 8"),
]


@pytest.mark.parametrize(("speakers", "what", "nearest"), REFUSED, ids=[r[1] for r in REFUSED])
def test_refusals_name_the_speaker(pipeline, speakers, what, nearest):
    with pytest.raises(SpeakerError) as refused:
        pipeline(PICTURE, speakers, request=REQUEST)
    assert what in refused.value.what and nearest in str(refused.value)


def test_a_face_that_is_cut_off_is_refused(pipeline):
    picture, top, low = np.zeros((96, 128, 3), np.uint8), np.zeros((96, 128), bool), np.zeros((96, 128), bool)
    top[:6] = low[40:60] = True
    with pytest.raises(SpeakerError, match=r"Nothing of the mask of speaker 1 .* 128x64"):
        pipeline(picture, [Speaker(A, top), Speaker(B, low)], request=dataclasses.replace(REQUEST, size="128x64"))


def test_a_continued_video_hears_the_same_speakers(pipeline, tmp_path):
    kept = dataclasses.replace(REQUEST, keep_state=True)
    first = pipeline(PICTURE, TWO, request=kept)
    first.save(tmp_path / "a.mp4", state=tmp_path / "s")
    request = Request(size="128x64")
    second = pipeline(
        PICTURE, [Speaker(B, side(True)), Speaker(A, side(False))], request=request, continue_from=tmp_path / "s"
    )
    assert not any("video before" in n and "speaker" in n for n in second.spec.resolved.notes)
    made = torch.cat((first.latents(), second.latents()), 2)
    assert torch.equal(made, whole(pipeline, kept, [first.spec, second.spec]))
    others = [Speaker(A, side(True) & (np.arange(WIDTH) < 80)), TWO[1]]
    told = pipeline(PICTURE, others, request=request, continue_from=tmp_path / "s").spec.resolved.notes
    assert any("masks are others" in note for note in told)
    told = pipeline(None, A, request=request, continue_from=tmp_path / "s").spec.resolved.notes
    assert any("2 speakers in the video before, and one speaker now" in note for note in told)


def whole(pipeline, request, specs) -> torch.Tensor:
    """The latents of one video that hears what these hear, one after the other."""
    encoders = pipeline.encoders(specs[0].plan)
    encoded = [
        encode_conditioning(encoders, s.request, s.resolved, PICTURE, s.audio, speakers=s.speakers) for s in specs
    ]
    counts = [s.resolved.blocks for s in specs]

    class Joined(StackedFeatures):
        def block(self, b: int) -> torch.Tensor:
            return encoded[0].audio.block(b) if b < counts[0] else encoded[1].audio.block(b - counts[0])

    resolved = dataclasses.replace(specs[0].resolved, blocks=sum(counts), frames=12 * sum(counts))
    conditioning = dataclasses.replace(encoded[0], audio=Joined([encoded[0].audio]))
    task = VideoTask(resolved, conditioning, request.sink_distance)
    engine = pipeline.backend.engine(pipeline.components, specs[0].plan)
    made = torch.cat(list(engine.run(task)), 1)[None]
    mean, inverse_std = encoders.latent_scale()
    return made / inverse_std + mean


def test_plans_count_the_speakers():
    asked = resolve(Request(size="704x384"), (704, 384), 500 * 16_000, 16_000)
    plans = [
        choose_plan(video, WAN2_2_S2V_14B, Hardware.parse("1x80", host=128 * GIB), PlanOptions(), model="14B")
        for video in (asked, dataclasses.replace(asked, speaker_count=2), dataclasses.replace(asked, speaker_count=4))
    ]
    paces = [plan.forecast.seconds_per_block for plan in plans]
    assert paces[0] < paces[1] < paces[2] < 1.5 * paces[0]
    work = [workspace_bytes(WAN2_2_S2V_14B, asked.frame_tokens, 2, speakers=n) for n in (1, 2, 8)]
    assert work[0] == work[1] < work[2]
    one, two = (TemporaryBytes.of(v, WAN2_2_S2V_14B) for v in (asked, dataclasses.replace(asked, speaker_count=2)))
    assert two.features == 2 * one.features > 0 and two.audio == 2 * one.audio and two.latents == one.latents
