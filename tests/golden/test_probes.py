"""Every piece inside the network gives the numbers of the original, not only its end."""

from __future__ import annotations

import pytest
import torch
from golden.cases import Case, assert_matches, cases
from golden.rollout import Rollout

from liveavatar.model.rope import RopeGrid
from liveavatar.model.transformer import timestep_sinusoid
from liveavatar.request import SinkDistance


def holding(*prefixes: str) -> pytest.MarkDecorator:
    """The cases that hold something under each prefix."""
    held = lambda case: all(any(k.startswith(p) for k in case.keys) for p in prefixes)  # noqa: E731
    return pytest.mark.parametrize("case", cases("dit_probes", "dit", "dit_weights", holds=held))


class Probe:
    """Collects what modules put out, under the names of the recording."""

    def __init__(self, rollout: Rollout):
        self.seen: dict[str, torch.Tensor] = {}
        net = rollout.net
        for name, module in self._watched(net).items():
            module.register_forward_hook(lambda _m, _i, out, name=name: self.seen.setdefault(name, out))

    def _watched(self, net) -> dict[str, torch.nn.Module]:
        first, injector = net.blocks["0"], net.audio_injector
        return {
            "patch_embedding.0": net.patch_embedding,
            "cond_encoder": net.cond_encoder,
            "framepack.tokens": net.frame_packer,
            "block0.self_attn_out": first.self_attn.o,
            "block0.cross_attn_out": first.cross_attn.o,
            "block0.ffn_out": first.ffn,
            **{f"block{i}.out": layer for i, layer in net.blocks.items()},
            **{f"inject{j}.adain_out": m for j, m in injector.injector_adain_layers.items()},
            **{f"inject{j}.cross_attn_out": m.o for j, m in injector.injector.items()},
            "head.out": net.head,
        }


def compare(case: Case, prefix: str, seen: dict[str, torch.Tensor]) -> None:
    """Every recorded tensor under `prefix` that we name too; shapes may differ by leading ones only."""
    compared = 0
    for name, ours in seen.items():
        if f"{prefix}.{name}" in case:
            recorded = case[f"{prefix}.{name}"]
            assert_matches(ours.reshape(recorded.shape), recorded, f"{prefix}.{name}")
            compared += 1
    assert compared, f"nothing recorded under {prefix} was compared"


def run_block(case: Case, calls: str, actors: bool) -> dict[str, torch.Tensor]:
    dit = case.sibling("dit")
    rollout = Rollout(dit)
    rollout.prefill(dit["in.ref_latents"], dit["in.motion_latents"])
    probe = Probe(rollout)
    rollout.velocity(0, 0, rollout.noise(0), dit.info[calls][0]["rel"], actors=actors)
    return probe.seen


@holding("b0s0.")
def test_pieces_of_a_block(case: Case) -> None:
    compare(case, "b0s0", run_block(case, "A", actors=False))


@holding("C.b0s0.")
def test_pieces_of_a_block_with_two_actors(case: Case) -> None:
    compare(case, "C.b0s0", run_block(case, "C", actors=True))


@holding("prefill.")
def test_pieces_of_the_prefill(case: Case) -> None:
    dit = case.sibling("dit")
    rollout = Rollout(dit)
    probe = Probe(rollout)
    rollout.prefill(dit["in.ref_latents"], dit["in.motion_latents"])
    compare(case, "prefill", probe.seen)


CONDITIONS = [
    pytest.param(*case.values, prefix, row, id=f"{case.id}-{prefix}")
    for case in cases("dit_probes", "dit", "dit_weights")
    for prefix, row in (("prefill", -1), ("b0s0", 0))
    if any(k.startswith((f"{prefix}.time.", f"{prefix}.text_embedding")) for k in case.values[0].keys)
]


@pytest.mark.parametrize("case, prefix, row", CONDITIONS)
def test_conditions(case: Case, prefix: str, row: int) -> None:
    """Recordings hold the timestep's rows first, then those of t = 0; a prefill uses the latter."""
    dit = case.sibling("dit")
    rollout = Rollout(dit)
    ours = {
        "time.sinusoid": timestep_sinusoid([*rollout.timesteps, 0.0], rollout.config.freq_dim),
        "time.e": rollout.time.head,
        "time.e0": rollout.time.layers.flatten(1),
    }
    held = [name for name in ours if f"{prefix}.{name}" in case]
    for name in held:
        assert_matches(ours[name][[row]], case[f"{prefix}.{name}"][[row]], f"{prefix}.{name}")
    assert held or f"{prefix}.text_embedding" in case, f"{case.folder.name} holds no conditions of {prefix}"
    if f"{prefix}.text_embedding" in case:
        text = rollout.net.embed_text(dit["in.context"])
        assert_matches(text[None], case[f"{prefix}.text_embedding"], f"{prefix}.text_embedding")


@holding("b0s0.audio_encoder.")
def test_audio_encoder(case: Case) -> None:
    compare_audio(case, "b0s0", actors=False)


@holding("C.b0s0.audio_encoder.")
def test_audio_encoder_of_two_actors(case: Case) -> None:
    compare_audio(case, "C.b0s0", actors=True)


def compare_audio(case: Case, prefix: str, actors: bool) -> None:
    """Recordings keep the rows of the repeated first frame; the last three are the block's."""
    rollout = Rollout(case.sibling("dit"))
    audio = rollout.audio(0, actors)
    for name, ours in (("global", audio.frame.unsqueeze(2)), ("tokens", audio.tokens)):
        if f"{prefix}.audio_encoder.{name}" in case:
            assert_matches(ours, case[f"{prefix}.audio_encoder.{name}"][:, -3:], name)


def grid_of(case: Case) -> RopeGrid:
    dit = case.sibling("dit")
    model = dit.info["config"]["model"]
    return RopeGrid(*(n // 2 for n in dit.info["config"]["lat_hw"]), model["dim"] // model["num_heads"])


def assert_rope(case: Case, key: str, rope) -> bool:
    """Compare where the case holds the entry; says whether it did."""
    if f"{key}.real" in case:
        assert_matches(rope.cos, case[f"{key}.real"], f"{key}.real")
        assert_matches(rope.sin, case[f"{key}.imag"], f"{key}.imag")
    return f"{key}.real" in case


@holding("rope.noise.")
def test_rope_of_blocks(case: Case) -> None:
    grid = grid_of(case)
    assert sum(assert_rope(case, f"rope.noise.{s}", grid.frames(s)) for s in case.info["rope_noise_start_frames"])


@holding("rope.cond.")
def test_rope_of_the_reference_follows_the_block(case: Case) -> None:
    compared = 0
    for entry in case.info["rope_cond"]:
        start, rel, position = entry["start_frame"], entry["rel"], entry["ref_frame_position"]
        if start % 3 == 0:
            assert SinkDistance("fixed", rel).reference_time_id(0, start // 3, 0) == position
        compared += assert_rope(case, f"rope.cond.{start}.{rel}", grid_of(case).reference(position))
    assert compared


@holding("rope.motion.")
def test_rope_of_motion_never_moves(case: Case) -> None:
    assert assert_rope(case, "rope.motion", grid_of(case).motion())
