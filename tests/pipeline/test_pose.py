"""A pose video is encoded as published, beside the blocks, and followed by the whole pipeline."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from cli.runs import write_inputs

import liveavatar.codec
from liveavatar.codec import ExecConfig, LocalEncoders
from liveavatar.components import open_components
from liveavatar.config import UNTRAINED, WAN2_2_S2V_14B
from liveavatar.engine.backend import LocalBackend
from liveavatar.errors import Cancelled, OutputError, RequestError
from liveavatar.events import GENERATING
from liveavatar.media.image import to_pixels
from liveavatar.media.pose_video import endless_pictures
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.placement import Placement
from liveavatar.planner import GIB, PlanOptions, choose_plan
from liveavatar.planner.hardware import Hardware
from liveavatar.planner.memory import aux_models
from liveavatar.pose import ClipLost, PoseLatents
from liveavatar.request import Request, resolve
from liveavatar.vae.tiling import encode_tiles

REQUEST = Request(size="64x64", steps=2, seed=9)
G = np.random.default_rng(3)
PICTURES = np.repeat(np.repeat(G.integers(0, 255, (70, 8, 8, 3), np.uint8), 8, 1), 8, 2)


class Counted:
    """Pose pictures, and how many of them were read."""

    seconds = None

    def __init__(self, pictures=PICTURES):
        self._pictures, self.read, self.open = pictures, 0, 0

    def pictures(self):
        self.open += 1
        try:
            for picture in self._pictures:
                self.read += 1
                yield picture
        finally:
            self.open -= 1


@pytest.fixture(scope="module")
def encoders():
    return LocalEncoders(open_components("untrained"), ExecConfig("cpu", "float32", 1))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    return folder / "portrait.png", folder / "voice.wav"


def pipeline(stages="1x1"):
    return LiveAvatarPipeline(open_components("untrained"), LocalBackend(Placement(("cpu",), stages, threads=1)))


def opened(width=64):
    return endless_pictures(Counted(), "hold", width, 64, "cover")


def posed(encoders, pictures=opened, **options):
    return PoseLatents(pictures, encoders.pose_encoder((8, 8)), 4, **options)


@pytest.mark.parametrize(("width", "tiles"), [(64, (1, 1)), (192, (1, 2))])
@pytest.mark.parametrize("clip_blocks", [4, 2])
def test_clips_are_encoded_as_published(encoders, clip_blocks, width, tiles):
    shown = list(itertools.islice(opened(width), 24 * clip_blocks))
    pose = PoseLatents(lambda: opened(width), encoders.pose_encoder((8, width // 8), tiles), clip_blocks)
    for clip in range(2):
        whole = shown[clip * 12 * clip_blocks : (clip + 1) * 12 * clip_blocks]
        video = torch.cat([to_pixels(picture) for picture in (whole[0], *whole)], 2)
        with torch.inference_mode():
            wanted = encode_tiles(encoders.vae, video, tiles)[0, :, 1:]
        made = torch.cat([pose.block(clip * clip_blocks + b) for b in range(clip_blocks)], 1)
        assert torch.equal(made, wanted)


def test_blocks_in_any_order_are_the_same(encoders):
    pose = posed(encoders)
    blocks = [pose.block(b) for b in range(6)]
    for b in (5, 2, 4, 0, 1):
        assert torch.equal(pose.block(b), blocks[b])
    assert torch.equal(posed(encoders).block(5), blocks[5])


@pytest.mark.parametrize("first", [4, 6, 7])
def test_a_pose_goes_on_with_the_pictures_of_its_clip(encoders, first):
    whole = posed(encoders)
    expected = [whole.block(b) for b in range(9)]
    shown = list(itertools.islice(opened(), 12 * 9))
    before = posed(encoders, keep=True)
    for b in range(first):
        before.block(b)
    kept = before.pictures_before(first)
    assert (kept is None) == (first % 4 == 0)
    rest = posed(encoders, lambda: (p for p in shown[12 * first :]), first=first, before=kept)
    assert kept is None or np.array_equal(rest.pictures_before(first), kept), "as long as no block was asked for"
    for b in (*range(first, 9), first):
        assert torch.equal(rest.block(b), expected[b])


def test_a_clip_that_is_lost_is_encoded_again(encoders):
    open_clip, lose = encoders.pose_encoder((8, 8)), [3, 9, 10]

    def losing():
        encode, asked = open_clip(), itertools.count()

        def encode_or_lose(pictures, callback):
            if lose and next(asked) == lose[0] % 4:
                lose.pop(0)
                raise ClipLost
            return encode(pictures, callback)

        return encode_or_lose

    fragile, whole = PoseLatents(opened, losing, 4), posed(encoders)
    assert all(torch.equal(fragile.block(b), whole.block(b)) for b in range(9)) and not lose


def test_a_clip_is_cancelled_between_layers_and_encoded_anew(encoders, monkeypatch):
    monkeypatch.setattr(liveavatar.codec, "HEARTBEAT_SECONDS", -1.0)
    pose, whole, calls = posed(encoders), posed(encoders), []

    def cancel(event):
        calls.append(event.phase)
        if len(calls) == 40:
            raise Cancelled("Enough.")

    first = pose.block(0)
    with pytest.raises(Cancelled):
        pose.block(1, cancel)
    assert calls == [GENERATING] * 40, "in the midst of the block"
    assert torch.equal(pose.block(1), [whole.block(b) for b in range(2)][1]) and torch.equal(pose.block(0), first)


def test_cancel_ends_a_video_while_its_pose_is_encoded(inputs, monkeypatch):
    monkeypatch.setattr(liveavatar.codec, "HEARTBEAT_SECONDS", -1.0)
    tasks, between = [], []

    def cancel(event):
        if event.phase == GENERATING:
            (between if event.task is None else tasks).append(event)
        if len(between) == 40:
            raise Cancelled("Enough.")

    made = pipeline()
    with contextlib.closing(made(*inputs, request=REQUEST, pose=PICTURES)) as video:
        with pytest.raises(Cancelled):
            video.latents(cancel)
        assert len(tasks) <= 1, "before the first block"
        assert torch.equal(video.latents(), latents(made, *inputs, PICTURES))


def test_a_pose_that_begins_in_the_midst_of_a_clip_begins_one_there(encoders):
    late, plain = posed(encoders, first=6, keep=True), posed(encoders)
    assert torch.equal(late.block(6), plain.block(0)) and torch.equal(late.block(7), plain.block(1))
    assert len(late.pictures_before(7)) == 24


def latents(made, image, audio, pose=None, **options):
    with contextlib.closing(made(image, audio, request=dataclasses.replace(REQUEST, **options), pose=pose)) as video:
        return video.latents()


def test_a_video_follows_its_pose_on_every_cut(inputs):
    image, audio = inputs
    plain, posed = latents(pipeline(), image, audio), latents(pipeline(), image, audio, PICTURES)
    assert not torch.equal(plain, posed)
    for cut in ("1x2", "2x1"):
        assert torch.equal(latents(pipeline(cut), image, audio, PICTURES), posed)
    looped, held = (latents(pipeline(), image, audio, PICTURES[:5], pose_end=end) for end in ("loop", "hold"))
    assert not torch.equal(looped, held)


def test_pictures_are_read_beside_the_blocks_and_let_go(inputs):
    source = Counted()
    video = pipeline()(*inputs, request=REQUEST, pose=source)
    assert source.read == 0
    blocks = iter(video.session().latents)
    next(blocks)
    assert 0 < source.read <= 3 * 12 and source.open == 1
    video.close()
    assert source.open == 0


def test_the_spec_tells_of_it(inputs, tmp_path):
    made = pipeline().describe(*inputs, REQUEST, pose=PICTURES[:10])
    plain = pipeline().describe(*inputs, REQUEST)
    assert made.resolved.pose and not plain.resolved.pose
    assert any("pose video ends after 0.40 s" in note for note in made.resolved.notes)
    assert made.plan.vae > plain.plan.vae


def test_no_output_takes_the_place_of_the_pose_video(inputs, tmp_path):
    image, audio = inputs
    with contextlib.closing(pipeline()(image, audio, request=REQUEST)) as video:
        video.save(tmp_path / "pose.mp4")
    with contextlib.closing(pipeline()(image, audio, request=REQUEST, pose=tmp_path / "pose.mp4")) as video:
        with pytest.raises(OutputError, match=r"pose\.mp4"):
            video.save(tmp_path / "pose.mp4")
        assert video.save(tmp_path / "next.mp4").status == "complete"


def test_odd_ends_are_refused(inputs):
    with pytest.raises(RequestError, match="pose_end = 'bounce'"):
        pipeline()(*inputs, request=dataclasses.replace(REQUEST, pose_end="bounce"), pose=PICTURES)


def test_plans_count_the_encode():
    asked = resolve(Request(size="704x384"), (704, 384), 160_000, 16_000)
    posed = dataclasses.replace(asked, pose=True)
    plain, following = (
        choose_plan(video, WAN2_2_S2V_14B, Hardware.parse("1x80", host=128 * GIB), PlanOptions(), model="14B")
        for video in (asked, posed)
    )
    assert 1.5 * GIB < following.vae - plain.vae < 2.5 * GIB
    assert following.forecast.seconds_per_block > plain.forecast.seconds_per_block
    tiled = aux_models(UNTRAINED, pose=True).vae_bytes((32, 32), 4, (2, 2))
    assert tiled.device > aux_models(UNTRAINED).vae_bytes((32, 32), 4, (2, 2)).device
