"""The sound encoder gives the published implementation's features, from the samples to every video frame."""

import numpy as np
import pytest
import torch
from golden.cases import Case, assert_matches, cases
from golden.encoders import wav2vec2

from liveavatar.encoders import audio
from liveavatar.encoders.audio import WaveformStats, encode_audio, hidden_states


def sounds() -> list:
    """The recorded sounds whose samples are there, over all cases."""
    return [
        pytest.param(param.values[0], name, id=f"{param.id}-{name}")
        for param in cases("audio", "wav2vec2_weights")
        for name in param.values[0].info["cases"]
        if f"{name}.wave16k" in param.values[0]
    ]


def recorded(case: Case, *names: str) -> list[str]:
    return [name for name in names if name in case]


@pytest.mark.parametrize(("case", "name"), sounds())
def test_samples_are_normalised_as_published(case: Case, name: str) -> None:
    wave = case[f"{name}.wave16k"].numpy()
    values = WaveformStats.of(wave).normalized(wave)
    for key in recorded(case, f"{name}.input_values_head"):
        assert_matches(torch.from_numpy(values[: len(case[key])]), case[key], key)
    info = case.info["cases"][name]
    assert abs(values.mean(dtype=np.float64) - info["input_values_mean"]) < 1e-6
    # recorded by torch, which divides by n - 1
    assert abs(values.std(ddof=1, dtype=np.float64) - info["input_values_std"]) < 1e-5


@pytest.mark.parametrize(("case", "name"), sounds())
def test_features_are_the_published_ones(case: Case, name: str) -> None:
    wave, info, model = case[f"{name}.wave16k"].numpy(), case.info["cases"][name], wav2vec2(case)
    states = hidden_states(model, WaveformStats.of(wave).normalized(wave))
    assert len(wave) == info["samples"]
    assert len(states) == len(info["hidden_abs_mean"])
    assert audio.feature_count(len(wave)) == info["hidden_frames"] == len(states[0])
    assert audio.resampled_count(info["hidden_frames"]) == info["frames30"]
    assert audio.published_clips(info["frames30"], case.info["config"]["batch_frames"]) == info["num_repeat"]
    for layer, (state, mean) in enumerate(zip(states, info["hidden_abs_mean"], strict=True)):
        assert abs(state.abs().mean().item() - mean) < 1e-5 * (1 + mean)
        for key in recorded(case, f"{name}.hidden.{layer}"):
            assert_matches(state, case[key], key)


@pytest.mark.parametrize(("case", "name"), sounds())
def test_every_frame_hears_what_it_did(case: Case, name: str) -> None:
    info = case.info["cases"][name]
    frames, silent = info["bucket_shape"][-1], info["zero_tail_frames"]
    features = encode_audio(wav2vec2(case), case[f"{name}.wave16k"].numpy(), frames, tail="zeros")
    heard = torch.cat([features.block(b)[0] for b in range(features.blocks)], dim=2)
    assert list(heard.shape) == info["bucket_shape"][1:]
    assert not heard[..., frames - silent :].any() and heard[..., frames - silent - 1].any()
    for key in recorded(case, f"{name}.bucket"):
        assert_matches(heard, case[key][0], key)
    for key in (k for k in case.keys if k.startswith(f"{name}.bucket.layers_")):
        layers = [int(layer) for layer in key.rpartition("layers_")[2].split("_")]
        assert_matches(heard[layers], case[key][0], key)
    for key in (k for k in case.keys if k.startswith(f"{name}.interp30.l")):
        indices = audio.feature_indices(frames - silent)
        layer = int(key.rpartition(".l")[2])
        assert_matches(heard[layer, :, : len(indices)].T, case[key][indices], key)


@pytest.mark.parametrize("case", cases("audio"))
def test_frames_take_the_published_steps(case: Case) -> None:
    """The tables have an entry per video frame of whole clips, which tells the length of their clips."""
    tables = [table for key, table in case.info.items() if key.startswith("bucket_geometry_fps25_bf")]
    for steps, expected in (row for table in tables for row in table.items()):
        clip, rest = divmod(len(expected["index"]), expected["num_repeat"])
        assert not rest and audio.published_clips(int(steps), clip) == expected["num_repeat"]
        indices = audio.feature_indices(len(expected["index"]))
        assert np.where(indices < int(steps), indices, -1).tolist() == expected["index"]
