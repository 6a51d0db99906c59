"""A pose video is encoded as published, beside the blocks, and followed by the whole pipeline."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from cli.runs import write_inputs

from liveavatar.codec import ExecConfig, LocalEncoders
from liveavatar.components import open_components
from liveavatar.config import UNTRAINED, WAN2_2_S2V_14B
from liveavatar.engine.backend import LocalBackend
from liveavatar.errors import OutputError, PoseError, RequestError
from liveavatar.media.image import to_pixels
from liveavatar.media.pose_video import endless_pictures
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.placement import Placement
from liveavatar.planner import GIB, PlanOptions, choose_plan
from liveavatar.planner.hardware import Hardware
from liveavatar.planner.memory import aux_models
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


def resolved(clip_blocks=4, width=64):
    asked = dataclasses.replace(REQUEST, clip_blocks=clip_blocks, size=f"{width}x64")
    return resolve(asked, (width, 64), 4 * 16_000, 16_000)


@pytest.mark.parametrize(("width", "tiles"), [(64, (1, 1)), (192, (1, 2))])
@pytest.mark.parametrize("clip_blocks", [4, 2])
def test_clips_are_encoded_as_published(encoders, clip_blocks, width, tiles):
    shown = list(itertools.islice(opened(width), 24 * clip_blocks))
    pose = encoders.encode_pose(lambda: opened(width), resolved(clip_blocks, width), tiles)
    for clip in range(2):
        whole = shown[clip * 12 * clip_blocks : (clip + 1) * 12 * clip_blocks]
        video = torch.cat([to_pixels(picture) for picture in (whole[0], *whole)], 2)
        with torch.inference_mode():
            wanted = encode_tiles(encoders.vae, video, tiles)[0, :, 1:]
        made = torch.cat([pose.block(clip * clip_blocks + b) for b in range(clip_blocks)], 1)
        assert torch.equal(made, wanted)


def test_blocks_in_any_order_are_the_same(encoders):
    pose = encoders.encode_pose(opened, resolved())
    blocks = [pose.block(b) for b in range(6)]
    for b in (5, 2, 4, 0, 1):
        assert torch.equal(pose.block(b), blocks[b])
    again = encoders.encode_pose(opened, resolved())
    assert torch.equal(again.block(5), blocks[5])


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


def test_workers_and_odd_ends_are_refused(inputs):
    in_workers = LiveAvatarPipeline(
        open_components("untrained"), LocalBackend(Placement(("cpu",), processes=True, threads=1))
    )
    with pytest.raises(PoseError, match="Worker processes cannot follow"):
        in_workers(*inputs, request=REQUEST, pose=PICTURES)
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
