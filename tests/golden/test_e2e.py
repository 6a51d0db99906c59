"""From a picture, a voice and a prompt embedding to RGB: our session gives the video of the original's pipeline."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from golden.cases import Case, assert_matches, cases
from golden.encoders import wav2vec2
from golden.rollout import config_of

from liveavatar.codec import vae_decoder
from liveavatar.config import BLOCK_FRAMES, BLOCK_LATENTS, MOTION_FRAMES
from liveavatar.distance import SinkDistance
from liveavatar.encoders.audio import encode_audio
from liveavatar.encoders.features import AudioFeatures
from liveavatar.engines.local import LocalEngine
from liveavatar.media.picture import fit_picture, to_pixels
from liveavatar.model.transformer import CausalS2VTransformer, Part, empty_transformer
from liveavatar.planner import make_plan
from liveavatar.request import Effective, Request, clip_blocks_of, resolve
from liveavatar.schedule import Schedule, block_noise
from liveavatar.session import Job, Material, Session
from liveavatar.size import effective_size
from liveavatar.storage import WeightFormat
from liveavatar.vae.wan import build_vae, encode
from liveavatar.weights.fill import fill
from liveavatar.weights.keymaps import vae_to_diffusers
from liveavatar.weights.source import DictSource, RenamedSource

pytestmark = pytest.mark.parametrize("case", cases("e2e", "dit_weights", "vae_weights", "audio"))
RGB_TOLERANCE = 1e-4


class CaseComponents:
    """The transformer of a case, part by part."""

    name = "golden"
    trained = True

    def __init__(self, case: Case):
        self.weights = case.sibling("dit_weights")
        self.config = config_of(case.info["dit_config"], self.weights)

    def transformer(
        self, part: Part, device: torch.device, dtype: torch.dtype, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        net = empty_transformer(self.config, part, weights)
        fill(net, DictSource(self.weights.state_dict()), dtype=dtype, device=device)
        return net


def vae_of(case: Case):
    with torch.device("meta"):
        vae = build_vae(base_dim=case.info["vae_dim"])
    source = RenamedSource(DictSource(case.sibling("vae_weights").state_dict()), vae_to_diffusers)
    fill(vae, source, dtype=torch.float32, device="cpu")
    return vae


def effective_of(case: Case) -> Effective:
    """The recorded run: whole clips, three frames dropped, the size of the picture's aspect."""
    cfg = case.info["config"]
    height, width = cfg["image_hw"]
    clip_blocks = clip_blocks_of(cfg["infer_frames"])
    blocks = cfg["num_clip"] * clip_blocks
    request = Request("64x64", steps=cfg["steps"], seed=cfg["seed"], lead="original", clip_blocks=clip_blocks)
    effective = resolve(request, (64, 64), (blocks * BLOCK_FRAMES - 3) * 640, 16_000)
    width, height = effective_size((width, height), cfg["max_area"])
    return dataclasses.replace(effective, width=width, height=height)


def features_of(case: Case, effective: Effective) -> AudioFeatures:
    """Encoded from the recorded sound, or, where a case does not hold it, as recorded."""
    audio = case.sibling("audio")
    if "real.wave16k" in audio and case.sibling("wav2vec2_weights").keys:
        wave = audio["real.wave16k"].numpy()
        with torch.inference_mode():
            return encode_audio(wav2vec2(audio), wave, effective.blocks * BLOCK_FRAMES, tail="zeros")
    bucket = audio["real.bucket"][0]
    features = AudioFeatures(*bucket.shape[:2])
    features.append(bucket.permute(2, 0, 1).numpy())
    return features


def session_of(case: Case, stages: str = "1x1") -> Session:
    effective, vae = effective_of(case), vae_of(case)
    rgb = fit_picture(case["image_uint8_hwc"].numpy(), effective.width, effective.height, "pad")
    pixels = to_pixels(rgb)
    with torch.inference_mode():
        reference = encode(vae, pixels)[0]
        motion = encode(vae, pixels.expand(-1, -1, MOTION_FRAMES, -1, -1))[0]
    recorded = tuple(tuple(steps) for clip in case["rel"].tolist() for steps in clip)
    material = Material(reference, motion, case["context"], features_of(case, effective))
    components = CaseComponents(case)
    plan = make_plan(effective, components.config, model="golden", stages=stages)
    job = Job(effective, material, SinkDistance("replay", 0, recorded))
    return Session(LocalEngine(components, plan), job, lambda motion, _: vae_decoder(vae, motion, plan.threads))


def test_the_size_is_the_recorded_one(case: Case) -> None:
    effective = effective_of(case)
    assert [effective.height, effective.width] == case.info["size_hw"]


def test_noise_and_timesteps(case: Case) -> None:
    effective = effective_of(case)
    assert_matches(torch.tensor(Schedule.of(effective.steps).timesteps), case["timesteps"], "timesteps")
    for clip in range(effective.clips):
        if f"noise.clip{clip}" not in case:
            continue
        size, n = effective.latent_size, effective.clip_blocks
        blocks = [block_noise(effective.seed, b, 16, *size, n) for b in range(clip * n, (clip + 1) * n)]
        assert torch.equal(torch.cat(blocks, 1), case[f"noise.clip{clip}"])


@pytest.mark.parametrize("stages", ["1x1", "steps", "layers", "grid"])
def test_latents_and_frames(case: Case, stages: str) -> None:
    steps, layers = case.info["config"]["steps"], case.info["dit_config"]["num_layers"]
    cut = {"1x1": "1x1", "steps": f"{steps}x1", "layers": f"1x{layers}", "grid": f"{min(2, steps)}x{layers}"}[stages]
    with session_of(case, cut) as session:
        material = session.job.material
        if stages == "1x1":
            for key, ours in (("tpp.ref_latents", material.reference), ("tpp.motion_latents", material.motion)):
                if key in case:
                    assert_matches(ours[None], case[key], key)
        latents = torch.cat(list(session.latents), 1)
        frames = torch.cat(list(session.frames), 1) if stages == "1x1" else None
        per_clip = session.job.effective.clip_blocks * BLOCK_LATENTS
    for clip in range(case.info["config"]["num_clip"]):
        if f"tpp.x0.clip{clip}" in case:
            ours = latents[:, clip * per_clip : (clip + 1) * per_clip]
            assert_matches(ours, case[f"tpp.x0.clip{clip}"], f"latents of clip {clip}", atol=RGB_TOLERANCE)
    if "tpp.second_ref" in case:
        assert_matches(latents[None, :, :1], case["tpp.second_ref"], "second reference", atol=RGB_TOLERANCE)
    if frames is not None:
        compare_frames(case, frames)


def compare_frames(case: Case, frames: torch.Tensor) -> None:
    """RGB in [-1, 1], thinned out or whole frames, whatever the case holds."""
    assert list(frames.shape) == case.info["tpp.video_shape"]
    thin = [k for k in case.keys if k.startswith("tpp.rgb.stride")]
    for key in thin:
        stride = int(key.removeprefix("tpp.rgb.stride"))
        assert_matches(frames[:, :, ::stride, ::stride], case[key], key, atol=RGB_TOLERANCE)
    whole = [k for k in case.keys if k.startswith("tpp.rgb.frame")]
    for key in whole:
        assert_matches(frames[:, int(key.removeprefix("tpp.rgb.frame"))], case[key], key, atol=RGB_TOLERANCE)
    assert thin or whole, f"{case.folder.name} holds no frames"
