"""Prompts, audio and images that were encoded before are not encoded again, and nothing is kept for ever."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from liveavatar.codec import ExecConfig
from liveavatar.components import Components, open_components
from liveavatar.conditioning_cache import AUDIOS, IMAGES, PROMPTS, CachedEncoders, ConditioningCache, digest
from liveavatar.encoders.audio import AudioFeatures
from liveavatar.engine.backend import LocalBackend
from liveavatar.media.audio import AudioClip
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.placement import Placement
from liveavatar.request import Request
from liveavatar.spool import Spool

CPU = ExecConfig("cpu", "float32", 1)


class CountingEncoders:
    """Stand-ins that count how often they are asked."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def encode_prompts(self, prompts: Sequence[str], callback: Callable[[Any], None]) -> list[torch.Tensor]:
        self.calls["prompt"] += len(prompts)
        self.calls["text encoder"] += 1
        return [torch.full((1, 4), float(len(prompt))) for prompt in prompts]

    def encode_audio(self, audio: Any, frames: int, tail: str, callback: Callable[[Any], None]) -> AudioFeatures:
        self.calls["audio"] += 1
        features = AudioFeatures(1, 2)
        features.append(np.full((frames, 1, 2), float(np.asarray(audio[:1])[0]), np.float32))
        return features

    def encode_image(self, pixels: torch.Tensor, callback: Any, tiles: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls["image"] += 1
        return pixels.mean(), pixels.sum()


@pytest.fixture
def asked() -> CountingEncoders:
    return CountingEncoders()


@pytest.fixture
def encoders(asked: CountingEncoders) -> Any:
    return CachedEncoders(asked, CPU, ConditioningCache())  # type: ignore[arg-type]


def image(value: float) -> torch.Tensor:
    return torch.full((1, 3, 1, 2, 2), float(value))


def test_equal_content_is_encoded_once_and_its_phase_is_complete(asked: CountingEncoders, encoders: Any) -> None:
    events: list[Any] = []
    for _ in range(3):
        assert torch.equal(encoders.encode_prompts(["hello"], events.append)[0], torch.full((1, 4), 5.0))
        features = encoders.encode_audio(np.full(4, 0.5, np.float32), 12, "silence", events.append)
        assert features.block(0).unique().tolist() == [0.5]
        features.close()
        encoders.encode_image(image(0.25).clone(), events.append)
    assert asked.calls == {"prompt": 1, "text encoder": 1, "audio": 1, "image": 1}
    assert len(events) == 9 and {event.share for event in events} == {1.0}


def test_whatever_differs_is_encoded(asked: CountingEncoders, encoders: Any) -> None:
    other = CachedEncoders(asked, ExecConfig("cpu", "bfloat16", 1), encoders.cache)  # type: ignore[arg-type]
    for who in (encoders, other):
        who.encode_prompts(["a"])
        who.encode_prompts(["b"])
        for frames, tail, value in ((12, "silence", 1), (24, "silence", 1), (12, "zeros", 1), (12, "silence", 2)):
            who.encode_audio(np.full(4, value, np.float32), frames, tail)
        who.encode_image(image(1))
        who.encode_image(image(2))
    assert asked.calls == {"prompt": 4, "text encoder": 4, "audio": 8, "image": 4}


def test_only_the_latest_are_kept(asked: CountingEncoders, encoders: Any) -> None:
    for number in range(PROMPTS + 4):
        encoders.encode_prompts([str(number) * number])
        encoders.encode_audio(np.full(4, number, np.float32), 12, "silence")
        encoders.encode_image(image(number))
    before = dict(asked.calls)
    for number in range(4, PROMPTS + 4):
        encoders.encode_prompts([str(number) * number])
    for number in range(PROMPTS + 4 - AUDIOS, PROMPTS + 4):
        encoders.encode_audio(np.full(4, number, np.float32), 12, "silence")
    for number in range(PROMPTS + 4 - IMAGES, PROMPTS + 4):
        encoders.encode_image(image(number))
    assert asked.calls == before
    encoders.encode_prompts([""])
    encoders.encode_audio(np.zeros(4, np.float32), 12, "silence")
    encoders.encode_image(image(0))
    assert asked.calls == {name: count + 1 for name, count in before.items()}


def test_features_stay_as_long_as_anybody_reads_them(encoders: Any) -> None:
    first = encoders.encode_audio(np.ones(4, np.float32), 12, "silence")
    second = encoders.encode_audio(np.ones(4, np.float32), 12, "silence")
    first.close()
    first.close()
    with pytest.raises(ValueError, match="closed"):
        first.block(0)
    encoders.cache.clear()
    assert second.block(0).shape == (1, 1, 2, 12)
    second.close()
    with pytest.raises(ValueError, match="closed"):
        second.block(0)


def test_rows_in_a_file_have_the_digest_of_the_array() -> None:
    values = np.random.default_rng(0).normal(size=3_000_000).astype(np.float32)
    spool = Spool(1, memory_bytes=1000)
    spool.append(values)
    assert spool.on_disk and digest(spool.rows(flat=True)) == digest(values) != digest(values[:-1])


class CountingComponents:
    """The miniature, and how often each encoder was loaded."""

    def __init__(self, components: Components):
        self._components, self.loads = components, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._components, name)
        if name not in ("text_encoder", "audio_encoder"):
            return found

        def counted(*given: Any) -> Any:
            self.loads[name] += 1
            return found(*given)

        return counted


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_new_seeds_load_no_encoder_again(keep_loaded: bool, tmp_path: Any) -> None:
    components: Any = CountingComponents(open_components("mini"))
    pipeline = LiveAvatarPipeline(components, LocalBackend(Placement(("cpu",), threads=1, keep_loaded=keep_loaded)))
    shade = np.full((64, 64, 3), 99, np.uint8)
    clip = AudioClip.from_array(np.sin(np.arange(8000) / 20).astype(np.float32) / 2, 16_000)
    hashes = []
    for seed in (1, 2, 1):
        job = pipeline(shade, clip, "A calm person", request=Request(size="64x64", steps=1, seed=seed))
        hashes.append(job.save(tmp_path / f"{len(hashes)}.mp4").frames_sha256)
        job.close()
    assert components.loads == {"text_encoder": 1, "audio_encoder": 1}
    assert hashes[0] == hashes[2] != hashes[1]
    pipeline.release()
    pipeline(shade, clip, "A calm person", request=Request(size="64x64", steps=1)).session().close()
    assert components.loads == {"text_encoder": 2, "audio_encoder": 2}
