"""Encoders and VAE in a worker give the same numbers, and a decoder goes on when its worker is lost."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed.videos import notices

from liveavatar.codec import Encoders, ExecConfig, LocalEncoders
from liveavatar.components import open_components
from liveavatar.distributed import RayBackend, WorkerError
from liveavatar.distributed.codec_worker import CodecWorker
from liveavatar.distributed.wire import ModelSpec
from liveavatar.errors import Cancelled, LiveAvatarError
from liveavatar.events import ENCODING_AUDIO, Event
from liveavatar.vae.decoding import CONTEXT_LATENTS
from liveavatar.vae.tile_grid import Tiles

PLACE = ExecConfig("cpu", "float32", 1)
COMPONENTS = open_components("mini")


@pytest.fixture(scope="module")
def here() -> LocalEncoders:
    return LocalEncoders(COMPONENTS, PLACE)


@pytest.fixture
def there(backend: RayBackend) -> Iterator[Encoders]:
    before, backend.restarts = backend.restarts, 2
    yield backend.codec(COMPONENTS, PLACE)
    backend.restarts = before


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_words_sound_and_picture_become_the_same_numbers(here: LocalEncoders, there: Encoders) -> None:
    prompts = ["a calm man, green wall", "a sad man"]
    for read, expected in zip(there.encode_prompts(prompts), here.encode_prompts(prompts), strict=True):
        assert torch.equal(read, expected)
    wave = np.random.default_rng(0).standard_normal(16_000 * 7).astype(np.float32)
    events: list[Event] = []
    mine, theirs = (c.encode_audio(wave, 168, "silence", events.append) for c in (here, there))
    assert theirs.blocks == mine.blocks == 14
    assert all(torch.equal(theirs.block(b), mine.block(b)) for b in range(14))
    assert {event.phase for event in events} == {ENCODING_AUDIO} and all(0 <= event.share <= 1 for event in events)
    pixels = noise(1, 3, 1, 64, 64).clamp(-1, 1)
    for a, b in zip(there.encode_image(pixels), here.encode_image(pixels), strict=True):
        assert torch.equal(a, b)
    wide = noise(1, 3, 1, 128, 192).clamp(-1, 1)
    in_tiles, whole = (here.encode_image(wide, tiles=tiles)[0] for tiles in ((1, 2), (1, 1)))
    assert torch.equal(there.encode_image(wide, tiles=(1, 2))[0], in_tiles) and not torch.equal(in_tiles, whole)
    for a, b in zip(there.latent_scale(), here.latent_scale(), strict=True):
        assert torch.equal(a, b)


def test_images_are_decoded_while_a_prompt_is_encoded(
    here: LocalEncoders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, begun, go_on = CodecWorker(str(tmp_path / "worker.log")), threading.Event(), threading.Event()
    encode = LocalEncoders.encode_prompts

    def slowly(encoders: LocalEncoders, prompts: Sequence[str]) -> list[torch.Tensor]:
        begun.set()
        assert go_on.wait(60)
        return encode(encoders, prompts)

    monkeypatch.setattr(LocalEncoders, "encode_prompts", slowly)
    worker.open(ModelSpec.of(COMPONENTS), PLACE)
    with ThreadPoolExecutor() as pool:
        prompt = pool.submit(worker.encode_prompts, ("a calm man",))
        assert begun.wait(60)
        worker.open_decoder(1, noise(16, 19, 8, 8), (1, 1))
        assert worker.decode(1, noise(16, 3, 8, 8)).shape == (3, 12, 64, 64)
        assert not prompt.done()
        go_on.set()
        assert torch.equal(prompt.result()[0], encode(here, ["a calm man"])[0])


def test_states_of_sound_are_those_of_the_encoder_here(here: LocalEncoders, there: Encoders) -> None:
    wave = np.random.default_rng(1).standard_normal(16_000).astype(np.float32)
    mine, theirs = (encoders.audio_encoder() for encoders in (here, there))
    assert (theirs.layers, theirs.channels) == (mine.layers, mine.channels)
    for rows in (slice(None), slice(20, 30)):
        states = zip(theirs.states(wave, rows), mine.states(wave), strict=True)
        assert all(torch.equal(one, other[rows]) for one, other in states)


def test_a_refusal_of_the_library_arrives_as_one(here: LocalEncoders, there: Encoders) -> None:
    with pytest.raises(LiveAvatarError) as refused:
        here.encode_audio(np.zeros(10, np.float32), 12, "silence")
    with pytest.raises(LiveAvatarError) as arrived:
        there.encode_audio(np.zeros(10, np.float32), 12, "silence")
    assert str(arrived.value) == str(refused.value) and not isinstance(arrived.value, WorkerError)


def test_listening_can_be_cancelled(there: Encoders) -> None:
    wave = np.random.default_rng(0).standard_normal(16_000 * 400).astype(np.float32)
    shares: list[float] = []

    def stop(event: Event) -> None:
        shares.append(event.share)
        if event.share > 0:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        there.encode_audio(wave, 12_000, "silence", stop)
    assert shares[-1] < 1
    assert there.encode_audio(wave[:16_000], 24, "silence").blocks == 2


def test_two_videos_are_decoded_side_by_side(here: LocalEncoders, there: Encoders) -> None:
    motions = [noise(16, 19, 8, 8, seed=s) for s in (1, 2)]
    mine, theirs = ([codec.decoder(m) for m in motions] for codec in (here, there))
    for block in range(3):
        for number in (0, 1):
            latents = noise(16, 3, 8, 8, seed=10 * block + number)
            assert torch.equal(theirs[number](latents), mine[number](latents))


@pytest.mark.parametrize(
    ("blocks", "tiles"),
    [
        (2, (1, 1)),
        pytest.param(CONTEXT_LATENTS + 4, (1, 1), marks=pytest.mark.slow),
        pytest.param(CONTEXT_LATENTS + 1, (1, 2), marks=pytest.mark.slow),
    ],
)
def test_a_decoder_goes_on_in_a_new_worker(
    backend: RayBackend, here: LocalEncoders, there: Encoders, blocks: int, tiles: Tiles
) -> None:
    size = (8, 8) if tiles == (1, 1) else (4, 14)
    motion = noise(16, 19, *size, seed=3)
    told: list[str] = []
    mine, theirs = here.decoder(motion, tiles=tiles), there.decoder(motion, notices(told.append), tiles)
    for block in range(blocks):
        latents = noise(16, 3, *size, seed=block)
        assert torch.equal(theirs(latents), mine(latents))
    before = backend.codec_pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    for block in range(blocks, blocks + 2):
        latents = noise(16, 3, *size, seed=block)
        assert torch.equal(theirs(latents), mine(latents))
    assert backend.codec_pid not in (None, before)
    assert len(told) == 1 and f"going on from block {blocks}" in told[0]


@pytest.mark.slow
def test_a_worker_that_hangs_is_named(backend: RayBackend, there: Encoders) -> None:
    backend.restarts, generous = 0, backend.deadline  # a decoder knows from its beginning how often it may begin anew
    decode = there.decoder(noise(16, 19, 8, 8))
    assert backend.codec_pid is not None
    os.kill(backend.codec_pid, signal.SIGSTOP)
    backend.deadline = 1
    try:
        with pytest.raises(WorkerError, match=r"encoders and VAE \(on cpu\) could not decode within 1 s"):
            decode(noise(16, 3, 8, 8))
    finally:
        backend.deadline = generous
    assert there.encode_prompts(["again"])[0].shape[1] == COMPONENTS.config.text_dim
