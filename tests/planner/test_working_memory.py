"""What the planner sets aside for work is no less than what work allocates, counted tensor by tensor."""

import pytest
import torch

import liveavatar.model.attention as attention
from liveavatar.bench.tracked import Allocated
from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.model.kv import BlockMemory, Ring, SinkKV, Window
from liveavatar.model.layer import AudioTokens, TextKV
from liveavatar.model.rope import Rope
from liveavatar.model.transformer import CausalS2VTransformer, Part
from liveavatar.planner import workspace_bytes
from liveavatar.planner.companions import PUBLISHED
from liveavatar.vae.stream import DecodeState, decode_block
from liveavatar.vae.wan import build_vae

BIG = WAN2_2_S2V_14B


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(("rows", "columns"), [(24, 44), (16, 24), (44, 80)])
def test_a_task_fits_into_its_workspace(rows, columns, monkeypatch):
    monkeypatch.setattr(attention, "attention", lambda q, k, v: torch.empty_like(q).flatten(-2))
    tokens, heads, width = rows * columns, BIG.num_heads, BIG.head_dim
    with torch.device("meta"):
        net = CausalS2VTransformer(BIG, Part(range(1), embed=True, head=True)).to(torch.bfloat16)
        ring = Ring.empty(tokens, heads, width, torch.bfloat16, torch.device("meta"))
    sink = SinkKV(*(empty(n, heads, width) for n in (tokens, tokens * 3 // 2, tokens * 5 // 2)))
    turns = [Rope(*(empty(n, width // 2, dtype=torch.float32) for _ in range(2))) for n in (3 * tokens, tokens)]
    memory = BlockMemory(ring, Window.of(9, tokens), sink, turns[1])
    text, time = TextKV(empty(512, heads, width), empty(512, heads, width)), empty(6, BIG.dim, dtype=torch.float32)
    audio, latent = AudioTokens(empty(1, 3, BIG.dim), empty(1, 3, 5, BIG.dim)), empty(16, 3, 2 * rows, 2 * columns)
    held = [ring.k, ring.v, *vars(sink).values(), text.k, text.v, time, *net.parameters()]
    held += [part for turn in turns for part in (turn.cos, turn.sin)]
    with torch.inference_mode(), Allocated([*held, audio.frame, audio.tokens]) as seen:
        net.run_layers(net.embed_block(latent), time, turns[0], [text], [memory], audio)
    estimate = workspace_bytes(BIG, tokens, 2)
    assert estimate / 2 < seen.most <= estimate


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_decode_fits_into_what_the_vae_is_given(dtype):
    height, width = 24, 40
    with torch.device("meta"):
        vae = build_vae().to(dtype)
    with torch.inference_mode(), Allocated(vae.parameters()) as seen:
        state = DecodeState.empty(vae)
        for _ in range(2):
            decode_block(vae, state, empty(16, 3, height, width, dtype=dtype))
    numbers = 2.25 * PUBLISHED.decode_state * height * width
    assert numbers / 2 < seen.most / dtype.itemsize <= numbers
