"""On a GPU: the VAE in 16 bits, channels last, in tiles and in a stream of its own makes the pictures it should."""

from pathlib import Path

import pytest
import torch
from gpu.device import DEVICE, ON_GPU, on_the_device, psnr

from liveavatar.codec import ExecConfig, LocalEncoders, vae_decoder
from liveavatar.components import open_components
from liveavatar.config import BLOCK_LATENTS
from liveavatar.media.image import fit_image, read_image, to_pixels
from liveavatar.vae.decoding import decode_block, open_decode

pytestmark = on_the_device
PORTRAIT = Path(__file__).parents[2] / "liveavatar/mini/assets/portrait.png"
SIDE, BLOCKS = 256, 4
WORKING = "bfloat16" if ON_GPU else "float32"
"""What a CPU has no fast kernels for is not tried there."""
Material = tuple[torch.Tensor, torch.Tensor]


def codec(dtype: str, device: str = DEVICE) -> LocalEncoders:
    return LocalEncoders(open_components("mini"), ExecConfig(device, dtype, 1))


@pytest.fixture(scope="module")
def material() -> Material:
    """Motion latents of a portrait, and those of a video that moves a little."""
    pixels = to_pixels(fit_image(read_image(PORTRAIT), SIDE, SIDE))
    reference, motion = codec("float32", "cpu").encode_image(pixels)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn((16, BLOCKS * BLOCK_LATENTS, *reference.shape[-2:]), generator=generator)
    return motion, reference + 0.1 * noise


def pictures(made_by: LocalEncoders, material: Material, tiles: tuple[int, int] = (1, 1)) -> torch.Tensor:
    motion, latents = material
    decode = vae_decoder(made_by.vae, motion, 1, tiles)
    return torch.cat([decode(block) for block in latents.split(BLOCK_LATENTS, 1)], 1)


@pytest.fixture(scope="module")
def true(material: Material) -> torch.Tensor:
    """On the CPU in float32."""
    return pictures(codec("float32", "cpu"), material)


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 30), ("float16", 38), ("float32", 45)])
def test_pictures_are_those_of_the_cpu(material, true, dtype, least):
    if not ON_GPU and dtype != WORKING:
        pytest.skip("slow on a CPU")
    assert psnr(pictures(codec(dtype), material), true) > least


def test_blocks_are_bit_equal_to_one_long_decode(material):
    vae, (motion, latents) = codec(WORKING).vae, material
    with torch.inference_mode():
        state = open_decode(vae, motion[None])
        whole = decode_block(vae, state, latents).cpu()
    assert torch.equal(pictures(codec(WORKING), material), whole)


@pytest.mark.parametrize("tiles", [(1, 2), (2, 2)])
def test_tiles_stay_near_the_whole(material, tiles):
    made_by = codec(WORKING)
    assert psnr(pictures(made_by, material, tiles), pictures(made_by, material)) > 35


def test_a_portrait_is_encoded_as_on_the_cpu(material):
    pixels = to_pixels(fit_image(read_image(PORTRAIT), SIDE, SIDE))
    _, motion = codec(WORKING).encode_image(pixels)
    assert psnr(motion, material[0]) > 30


def test_two_videos_in_turns_do_not_disturb_each_other(material):
    made_by, (motion, latents) = codec(WORKING), material
    alone = pictures(made_by, material)
    one, other = (vae_decoder(made_by.vae, motion, 1) for _ in range(2))
    taken = []
    for block in latents.split(BLOCK_LATENTS, 1):
        taken.append(one(block))
        other(block * 0.9)
    assert torch.equal(torch.cat(taken, 1), alone)
