"""The pruned VAE: the published names and shapes, a stream as the full one's, and its place beside the full one."""

import shutil

import fakes
import pytest
import torch
from safetensors.torch import load_file, save_file

from liveavatar.codec import ExecConfig, LocalEncoders
from liveavatar.components import load_tiny, open_components, tiny_config
from liveavatar.config import UNTRAINED, LightConfig
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.weights.settings import decoder_weights, is_light

PUBLISHED = {
    "conv1.weight": (32, 32, 1, 1, 1),
    "conv2.weight": (16, 16, 1, 1, 1),
    "encoder.conv1.weight": (24, 3, 3, 3, 3),
    "encoder.downsamples.2.resample.1.weight": (24, 24, 3, 3),
    "encoder.downsamples.5.time_conv.weight": (48, 48, 3, 1, 1),
    "encoder.middle.1.to_qkv.weight": (288, 96, 1, 1),
    "encoder.head.2.weight": (32, 96, 3, 3, 3),
    "decoder.conv1.weight": (96, 16, 3, 3, 3),
    "decoder.upsamples.3.time_conv.weight": (192, 96, 3, 1, 1),
    "decoder.upsamples.4.shortcut.weight": (96, 48, 1, 1, 1),
    "decoder.upsamples.11.resample.1.weight": (24, 48, 3, 3),
    "decoder.head.0.gamma": (24, 1, 1, 1),
    "decoder.head.2.weight": (3, 24, 3, 3, 3),
}
"""A quarter of the full one's channels wherever those are not of pictures or latents."""


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """A file as it is published, of random weights."""
    path = tmp_path_factory.mktemp("light") / "lightvaew2_1.safetensors"
    fakes.write_vae(path.with_suffix(".pth"), 5, base_dim=24)
    save_file(torch.load(path.with_suffix(".pth")), path)
    return path


@pytest.fixture
def models(tmp_path, light):
    """A model folder among those of ComfyUI, with the pruned VAE in its own."""
    folder = fakes.write_official_folder(tmp_path / "models/liveavatar/base", UNTRAINED)
    (tmp_path / "models/vae").mkdir()
    shutil.copy(light, tmp_path / "models/vae")
    return folder


def test_its_tensors_are_named_and_shaped_as_the_published_ones(light):
    tensors = load_file(light)
    assert len(tensors) == 194
    assert {name: tuple(tensors[name].shape) for name in PUBLISHED} == PUBLISHED


def test_it_is_told_by_its_width(light, tmp_path):
    assert is_light(light) and is_light(light.with_suffix(".pth"))
    assert decoder_weights(light)[1] == LightConfig(24)
    fakes.write_vae(tmp_path / "full.pth", 5)
    assert not is_light(tmp_path / "full.pth")


def test_a_stream_is_bit_equal_to_the_whole(light):
    vae = load_tiny(light, "cpu", torch.float32)
    latents = torch.randn(16, 7, 4, 4, generator=torch.Generator().manual_seed(2))
    state = DecodeState.empty(vae)
    parts = [decode_block(vae, state, part) for part in latents.split((1, 3, 3), 1)]
    whole = decode_block(vae, DecodeState.empty(vae), latents)
    assert whole.shape == (3, 25, 32, 32) and whole.std() > 0.01
    assert torch.equal(torch.cat(parts, 1), whole)


def test_it_decodes_in_place_of_the_full_one_which_encodes(models):
    with_it = open_components(str(models), vae="lightvaew2_1.safetensors")
    assert tiny_config(with_it) == LightConfig() and with_it.files.vae == models / "Wan2.1_VAE.pth"
    assert "decoder: " in with_it.describe()
    plain = open_components(str(models))
    place = ExecConfig("cpu", "float32", 1)
    still = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ours, full = (LocalEncoders(components, place) for components in (with_it, plain))
    reference, motion = ours.encode_image(still)
    assert torch.equal(reference, full.encode_image(still)[0])
    latents = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    frames = ours.decoder(motion)(latents)
    assert frames.shape == (3, 12, 32, 32) and not torch.equal(frames, full.decoder(motion)(latents))
    both = sum(p.nbytes for vae in (with_it.tiny_vae("cpu", torch.float32), ours.vae) for p in vae.parameters())
    assert ours.nbytes == both


def test_alone_it_does_both(models):
    (models / "Wan2.1_VAE.pth").unlink()
    alone = open_components(str(models), vae="lightvaew2_1.safetensors")
    assert tiny_config(alone) is None and alone.files.vae.name == "lightvaew2_1.safetensors"
    assert alone.vae("cpu", torch.float32).encoder.conv_in.weight.shape[0] == 24
