"""A video that is continued from its state: equal to one that never ended, and refused where it cannot be."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from media.videos import turn, write_film
from pipeline.test_pipeline import Heard, picture, sound
from pipeline.test_pose import PICTURES
from safetensors.torch import load_file, save_file

from liveavatar.components import MINI_FOLDER, open_components
from liveavatar.conditioning import encode_conditioning
from liveavatar.encoders.audio import AudioFeatures
from liveavatar.engine.backend import LocalBackend
from liveavatar.errors import Cancelled, ImageError, OutputError, RequestError, SizeError, StateError
from liveavatar.events import ignore
from liveavatar.media.audio import AudioClip
from liveavatar.media.audio_file import read_audio
from liveavatar.media.last_frames import read_last_frames
from liveavatar.media.pose_video import PosePictures
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.placement import Placement
from liveavatar.request import Request
from liveavatar.session import Session, VideoTask
from liveavatar.storage import PLAIN, KVDtype
from liveavatar.video_state import VideoState, state_bytes

REQUEST = Request(size="64x64", steps=2, seed=9, keep_state=True)
FIRST, SECOND = 2.2, 0.9
"""Seconds of sound: a little less than five blocks, and than two."""


def pipeline_with(stages: str = "1x1", **placement: object) -> LiveAvatarPipeline:
    devices = ("cpu",) * int(np.prod([int(n) for n in stages.split("x")]))
    placed = Placement(devices, stages, threads=1, **placement)
    return LiveAvatarPipeline(open_components("mini"), LocalBackend(placed))


@pytest.fixture(scope="module")
def pipeline() -> LiveAvatarPipeline:
    return pipeline_with()


@pytest.fixture(scope="module")
def first(pipeline: LiveAvatarPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a finished video, beside it."""
    folder = tmp_path_factory.mktemp("first")
    job = pipeline(picture(), sound(FIRST), request=REQUEST)
    job.save(folder / "a.mp4", state=folder / "a.state")
    return folder / "a.state"


def frames_of(job) -> torch.Tensor:
    """All images of a job, [3, n, H, W]."""
    return torch.cat(list(job.frames()), 1)


def uninterrupted(
    pipeline: LiveAvatarPipeline,
    sounds: list[AudioClip],
    request: Request = REQUEST,
    first_blocks: int | None = None,
    pose: PosePictures | None = None,
) -> torch.Tensor:
    """The frames of one video whose blocks have the features of these sounds, each encoded by itself; of the first
    sound so many blocks."""
    parts = [pipeline(picture(), each, request=request) for each in sounds]
    encoders = pipeline.encoders(parts[0].spec.plan)
    encoded = [
        encode_conditioning(encoders, p.spec.request, p.spec.resolved, p.spec.image, p.spec.audio, pose=pose)
        for p in parts
    ]
    joined = AudioFeatures(encoded[0].audio.layers, encoded[0].audio.channels)
    for number, conditioning in enumerate(encoded):
        for b in range(conditioning.audio.blocks if number or first_blocks is None else first_blocks):
            joined.append(conditioning.audio.block(b)[0].permute(2, 0, 1).numpy())
    resolved = dataclasses.replace(parts[0].spec.resolved, blocks=joined.blocks, frames=joined.frames)
    task = VideoTask(resolved, dataclasses.replace(encoded[0], audio=joined), request.sink_distance)
    plan = parts[0].spec.plan
    with Session(pipeline.backend.engine(pipeline.components, plan), task) as session:
        return torch.cat(list(session.frames_through(lambda motion, callback: encoders.decoder(motion, callback))), 1)


def test_a_continued_video_is_as_if_it_had_never_ended(pipeline, first):
    whole = uninterrupted(pipeline, [sound(FIRST), sound(SECOND)])
    before = frames_of(pipeline(picture(), sound(FIRST), request=REQUEST))
    job = pipeline(None, sound(SECOND), request=Request(size="64x64", keep_state=True), continue_from=first)
    assert job.spec.resolved.first_block == 5 and job.spec.resolved.seed == 9 and job.spec.resolved.steps == 2
    assert torch.equal(torch.cat((before, frames_of(job)), 1), whole)


@pytest.mark.slow
def test_more_than_the_decoder_remembers(pipeline, tmp_path):
    """Seventeen blocks, continued twice, the last time on another cut; the sound of each is under one block long."""
    request = dataclasses.replace(REQUEST, steps=1)
    sounds = [sound(8.0), sound(0.3), sound(0.9)]
    whole = uninterrupted(pipeline, sounds, request)
    a = pipeline(picture(), sounds[0], request=request)
    a.save(tmp_path / "a.mp4", state=tmp_path / "s")
    b = pipeline(None, sounds[1], request=request, continue_from=tmp_path / "s")
    b.save(tmp_path / "b.mp4", state=tmp_path / "s")
    c = pipeline_with("1x2", storage=dataclasses.replace(PLAIN, kv_offload=True))(
        None, sounds[2], request=request, continue_from=tmp_path / "s"
    )
    made = torch.cat([frames_of(job) for job in (a, b, c)], 1)
    assert torch.equal(made, whole) and VideoState(tmp_path / "s").info.block == 18


def test_a_cancelled_video_is_continued_where_its_file_ends(pipeline, tmp_path):
    job = pipeline(picture(), sound(FIRST), request=REQUEST)
    with pytest.raises(Cancelled, match="continues it"):
        job.save(tmp_path / "a.mp4", callback=Heard(break_after=5), state=tmp_path / "a.state")
    receipt = json.loads((tmp_path / "a.json").read_text())
    info = VideoState(tmp_path / "a.state").info
    assert receipt["status"] == "cancelled" and receipt["probed"]["frames"] == 12 * info.block > 0 and info.block < 5
    rest = frames_of(pipeline(None, sound(SECOND), request=REQUEST, continue_from=tmp_path / "a.state"))
    whole = uninterrupted(pipeline, [sound(FIRST), sound(SECOND)], first_blocks=info.block)
    assert torch.equal(rest, whole[:, 12 * info.block :])


@pytest.mark.parametrize("way", ["save", "latents"])
def test_a_file_for_the_case_that_it_is_cancelled_is_written_then_alone(pipeline, tmp_path, way):
    def make(job, callback=ignore):
        if way == "save":
            return job.save(tmp_path / "a.mp4", callback=callback, cancelled_state=tmp_path / "a.state")
        return job.latents(callback, tmp_path / "a.state")

    make(pipeline(picture(), sound(FIRST), request=REQUEST))
    assert not (tmp_path / "a.state").exists()
    job = pipeline(picture(), sound(FIRST), request=REQUEST)
    with pytest.raises(Cancelled, match=r"a\.state continues"):
        make(job, Heard(break_after=5))
    block = VideoState(tmp_path / "a.state").info.block
    assert 0 < block < 5
    rest = frames_of(pipeline(None, sound(SECOND), request=REQUEST, continue_from=tmp_path / "a.state"))
    whole = uninterrupted(pipeline, [sound(FIRST), sound(SECOND)], first_blocks=block)
    assert torch.equal(rest, whole[:, 12 * block :])
    assert torch.equal(frames_of(job), frames_of(pipeline(picture(), sound(FIRST), request=REQUEST))), "from block 0 on"


def test_without_a_file_for_the_state_a_video_is_cancelled_at_once(pipeline, tmp_path):
    job, heard = pipeline(picture(), sound(FIRST), request=REQUEST), Heard(break_after=5)
    with pytest.raises(Cancelled):
        job.save(tmp_path / "a.mp4", callback=heard)
    assert heard.tasks == 5 and not job.complete


def test_the_size_of_a_state_is_told_before(pipeline, first):
    job = pipeline(picture(), sound(FIRST), request=REQUEST)
    expected = state_bytes(pipeline.config, job.spec.resolved, job.spec.plan)
    stated = sum(t.nbytes for name, t in load_file(first).items() if "prompt" not in name)
    assert expected == stated and any("its state" in note for note in job.spec.resolved.notes)


def test_a_state_is_asked_for_before_it_is_saved(pipeline, tmp_path):
    job = pipeline(picture(), sound(SECOND), request=dataclasses.replace(REQUEST, keep_state=False))
    with pytest.raises(StateError, match="keeps it"):
        job.save(tmp_path / "a.mp4", state=tmp_path / "a.state")
    with pytest.raises(StateError, match="does not keep"):
        _ = job.left
    assert not list(tmp_path.iterdir())


def test_nothing_else_is_replaced_by_a_state(pipeline, tmp_path):
    job = pipeline(picture(), sound(SECOND), request=REQUEST)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no state"):
        job.save(tmp_path / "a.mp4", state=tmp_path / "notes.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_state_is_no_other_output(pipeline, tmp_path):
    job = pipeline(picture(), sound(SECOND), request=REQUEST)
    for name in ("a.mp4", "a.json"):
        with pytest.raises(OutputError, match="another output"):
            job.save(tmp_path / "a.mp4", state=tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_state_that_is_replaced_meanwhile_is_not_mixed_up(pipeline, first, tmp_path):
    copied = VideoState(first).copied(tmp_path / "s")
    job = pipeline(None, sound(SECOND), request=REQUEST, continue_from=copied)
    VideoState(first).copied(tmp_path / "s")
    with pytest.raises(StateError, match="replaced meanwhile"):
        frames_of(job)


def test_a_video_that_is_not_there_yet_is_made_for_the_one_after_it(pipeline, first):
    one = pipeline(picture(), sound(FIRST), request=REQUEST)
    two = pipeline(picture(), sound(SECOND), request=REQUEST, continue_from=one.left)
    assert not one.complete
    made = frames_of(two)
    assert one.complete
    assert torch.equal(made, frames_of(pipeline(None, sound(SECOND), request=REQUEST, continue_from=first)))


def test_a_prompt_changes_with_the_first_block(pipeline, first):
    same = pipeline(
        None, sound(SECOND), "A person looks at the camera and talks.", request=REQUEST, continue_from=first
    )
    other = pipeline(None, sound(SECOND), "An old woman laughs.", request=REQUEST, continue_from=first)
    plain = frames_of(pipeline(None, sound(SECOND), request=REQUEST, continue_from=first))
    assert torch.equal(frames_of(same), plain) and not torch.equal(frames_of(other)[:, :12], plain[:, :12])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": "128x64"}, None, None),  # an area: the portrait's shape makes it 64x64 again
        ({"size": "64x64", "steps": 3}, StateError, "has 2 steps, not 3"),
        ({"size": "64x64", "lead": "original"}, RequestError, "loses no frames"),
        ({"size": "64x64", "clip_blocks": 2}, StateError, "4 blocks in a clip, not 2"),
    ],
)
def test_another_video_than_the_one_before_is_refused(pipeline, first, options, error, words):
    if error is None:
        assert pipeline(None, sound(SECOND), request=Request(**options), continue_from=first)
        return
    with pytest.raises(RequestError, match=words):
        pipeline(None, sound(SECOND), request=Request(**options), continue_from=first)


def test_another_shape_is_refused(pipeline, first):
    wide = np.zeros((64, 128, 3), np.uint8)
    with pytest.raises(SizeError, match="is 64x64, not 128x64"):
        pipeline(wide, sound(SECOND), request=Request(size="128x64"), continue_from=first)


def test_a_larger_size_than_that_of_the_video_before_is_told(pipeline, first):
    job = pipeline(None, sound(SECOND), request=Request(size="128x128"), continue_from=first)
    assert job.spec.resolved.width == 64 and "the size is 64x64, that of the video before" in job.spec.resolved.notes


def test_no_portrait_and_no_state(pipeline):
    with pytest.raises(ImageError, match="No portrait"):
        pipeline(None, sound(SECOND))


def test_another_network_is_refused(first):
    other = LiveAvatarPipeline(open_components("untrained"), LocalBackend(Placement(("cpu",), threads=1)))
    with pytest.raises(StateError, match="another network"):
        other(None, sound(SECOND), request=Request(size="64x64"), continue_from=first)


def test_what_changes_the_last_bits_is_told(first):
    placed = Placement(("cpu",), "1x1", threads=2, storage=dataclasses.replace(PLAIN, kv_dtype="fp8"))
    other = LiveAvatarPipeline(open_components("mini"), LocalBackend(placed))
    job = other(None, sound(SECOND), request=Request(size="64x64", seed=5), continue_from=first)
    told = " ".join(job.spec.resolved.notes)
    assert "the size is" not in told
    assert "1 CPU threads (2 now)" in told and "KV cache in plain form (now fp8)" in told and "5 is not used" in told
    assert frames_of(job).shape[1] == 23


def test_a_pose_goes_on_with_the_video(tmp_path):
    """Five blocks, one of them in the second clip; and a state of a pose that the next video does not follow."""
    untrained = LiveAvatarPipeline(open_components("untrained"), LocalBackend(Placement(("cpu",), threads=1)))
    whole = uninterrupted(untrained, [sound(FIRST), sound(SECOND)], pose=PosePictures(PICTURES))
    one = untrained(picture(), sound(FIRST), request=REQUEST, pose=PICTURES[:60])
    one.save(tmp_path / "a.mp4", state=tmp_path / "a.state")
    stored = sum(t.nbytes for name, t in load_file(tmp_path / "a.state").items() if "prompt" not in name)
    assert stored == state_bytes(untrained.config, one.spec.resolved, one.spec.plan)
    copied = VideoState(tmp_path / "a.state").copied(tmp_path / "b.state")
    two = untrained(None, sound(SECOND), request=REQUEST, continue_from=copied, pose=PICTURES[60:])
    assert torch.equal(frames_of(two), whole[:, 60:])
    without = untrained(None, sound(SECOND), request=REQUEST, continue_from=copied)
    assert not torch.equal(frames_of(without), whole[:, 60:])
    wrong = damaged(copied.path, tmp_path / "s", lambda tensors, metadata: tensors.update(pose=tensors["pose"][:7]))
    with pytest.raises(StateError, match="has another pose"):
        untrained(None, sound(SECOND), request=REQUEST, continue_from=wrong, pose=PICTURES[60:])


def test_a_state_in_int4_goes_on_in_another_format_and_says_so(first, tmp_path):
    """And in its own, from a copy too, with the same bits."""

    def goes_on(state: Path, kv_dtype: KVDtype):
        keeping = pipeline_with(storage=dataclasses.replace(PLAIN, kv_dtype=kv_dtype))
        return keeping(None, sound(SECOND), request=Request(size="64x64", keep_state=True), continue_from=state)

    goes_on(first, "int4").save(tmp_path / "a.mp4", state=tmp_path / "a.state")
    copy = VideoState(tmp_path / "a.state").copied(tmp_path / "b.state").path
    assert copy.stat().st_size < 0.7 * first.stat().st_size
    own, again, plain = jobs = [goes_on(tmp_path / "a.state", "int4"), goes_on(copy, "int4"), goes_on(copy, "plain")]
    told = [" ".join(job.spec.resolved.notes) for job in jobs]
    assert ["int4 form (now plain): the numbers differ a little" in each for each in told] == [False, False, True]
    frames = frames_of(own)
    assert torch.equal(frames_of(again), frames) and not torch.equal(frames_of(plain), frames)


def damaged(first: Path, to: Path, change) -> Path:
    from safetensors import safe_open

    with safe_open(first, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(first)
    change(tensors, metadata)
    save_file(tensors, to, metadata)
    return to


def edit_header(**fields: object):
    def change(tensors, metadata):
        metadata["state"] = json.dumps({**json.loads(metadata["state"]), **fields})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, metadata: tensors.pop("kv.1.0.v"), "lacks kv.1.0.v"),
        (lambda tensors, metadata: tensors.update(motion=torch.zeros(16, 3, 8, 8)), "has another motion"),
        (lambda tensors, metadata: tensors.update(latents=torch.zeros(16, 7, 8, 8)), "has another latents"),
        (lambda tensors, metadata: metadata.update(format="another"), "no state"),
        (lambda tensors, metadata: metadata.update(format="liveavatar state 99"), "of another version .* state 99"),
        (lambda tensors, metadata: metadata.pop("state"), "header"),
        (edit_header(steps=10**9), "header"),
        (edit_header(width="wide"), "header"),
        (edit_header(block=0), "header"),
        (edit_header(sink_distance=3), "header"),
        (edit_header(block=2), "has another kv.0.0.k"),
    ],
)
def test_a_damaged_state_is_refused(pipeline, first, tmp_path, change, words):
    with pytest.raises(StateError, match=words):
        pipeline(
            None, sound(SECOND), request=Request(size="64x64"), continue_from=damaged(first, tmp_path / "s", change)
        )


def test_files_that_are_no_states(pipeline, first, tmp_path):
    (tmp_path / "cut").write_bytes(first.read_bytes()[:-100])
    (tmp_path / "text").write_text("nothing")
    for name in ("cut", "text", "missing"):
        with pytest.raises(StateError):
            pipeline(None, sound(SECOND), request=Request(size="64x64"), continue_from=tmp_path / name)
    with pytest.raises(StateError, match="nothing to go on from"):
        pipeline(None, sound(SECOND), request=Request(size="64x64"), continue_from=7)


@pytest.fixture(scope="module")
def talk(pipeline: LiveAvatarPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 23 frames."""
    path = tmp_path_factory.mktemp("talk") / "a.mp4"
    pipeline(picture(), sound(SECOND), request=dataclasses.replace(REQUEST, keep_state=False)).save(path)
    return path


def test_a_video_goes_on_approximately_from_the_last_frames_of_an_mp4(pipeline, talk, tmp_path):
    job = pipeline(None, sound(SECOND), request=REQUEST, continue_from=talk)
    assert job.spec.resolved.first_block == 0
    assert any("approximately" in note and "a.mp4" in note for note in job.spec.resolved.notes)
    receipt = job.save(tmp_path / "b.mp4", state=tmp_path / "b.state")
    assert receipt.probed.frames == 24
    conditioning = job.session().job.conditioning
    assert conditioning.before.shape[1] == 12 and not torch.equal(conditioning.motion[:, -1], conditioning.motion[:, 5])
    on = pipeline(None, sound(SECOND), request=Request(size="64x64"), continue_from=tmp_path / "b.state")
    assert on.spec.resolved.first_block == 2 and frames_of(on).shape[1] == 23


@pytest.mark.slow
def test_the_first_frame_is_nearer_to_the_last_one_than_that_of_a_new_video(pipeline, tmp_path):
    assets, request = MINI_FOLDER.parent / "assets", Request(size="128x128", steps=2, seed=5)
    image, voice = assets / "portrait.png", read_audio(assets / "voice.wav")
    begin, rest = (
        AudioClip(voice.samples[part], voice.rate, "voice") for part in (slice(31_000), slice(31_000, 36_000))
    )
    pipeline(image, begin, request=request).save(tmp_path / "a.mp4")
    last = torch.from_numpy(read_last_frames(tmp_path / "a.mp4", 1).frames[0]).permute(2, 0, 1).float()
    on, new = (
        frames_of(pipeline(image, rest, request=request, continue_from=start))[:, 0].float()
        for start in (tmp_path / "a.mp4", None)
    )
    assert (on - last).abs().mean() < 0.8 * (new - last).abs().mean()


def test_a_video_that_is_shown_turned_is_read_as_it_is_shown(tmp_path):
    write_film(tmp_path / "a.mp4", 3, None, 128, 64)
    flat = read_last_frames(tmp_path / "a.mp4", 2)
    turned = read_last_frames(turn(tmp_path / "a.mp4"), 2)
    assert turned.size == (64, 128) and np.array_equal(np.rot90(turned.frames[0]), flat.frames[0])


def test_a_video_of_another_size_is_refused(pipeline, talk):
    with pytest.raises(SizeError, match="is 64x64, and what goes on from it would be 128x64"):
        pipeline(np.zeros((64, 128, 3), np.uint8), sound(SECOND), request=Request(size="128x64"), continue_from=talk)


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0 ftypisom" + bytes(100)], ids=["empty", "text", "cut"])
def test_what_is_no_video_is_refused(pipeline, tmp_path, content):
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(StateError, match="video"):
        pipeline(None, sound(SECOND), request=REQUEST, continue_from=tmp_path / "x.mp4")
