"""What the planner sets aside for work is no less than what work allocates, counted tensor by tensor."""

import pytest
import torch

import liveavatar.model.attention as attention
from liveavatar.bench.tracked import Allocated
from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.model.kv_cache import BlockCache, RollingKVCache, SinkKV, Window
from liveavatar.model.layer import AudioTokens, TextKV
from liveavatar.model.rope import Rope
from liveavatar.model.transformer import ModelSlice, empty_transformer
from liveavatar.planner import workspace_bytes
from liveavatar.planner.memory import PUBLISHED_AUX
from liveavatar.request import Request, resolve
from liveavatar.vae.decoding import DecodeState, decode_block
from liveavatar.vae.tile_grid import Grid
from liveavatar.vae.tiling import TiledDecoder, encode_tiles
from liveavatar.vae.wan import build_vae, to_channels_last

BIG = WAN2_2_S2V_14B


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize(
    ("rows", "columns", "speakers"), [(24, 44, 1), (16, 24, 1), (44, 80, 1), (24, 44, 2), (24, 44, 4), (16, 24, 8)]
)
def test_a_task_fits_into_its_workspace(rows, columns, speakers, monkeypatch):
    monkeypatch.setattr(attention, "attention", lambda q, kv, kernel=None: torch.empty_like(q).flatten(-2))
    tokens, heads, width = rows * columns, BIG.num_heads, BIG.head_dim
    with torch.device("meta"):
        net = empty_transformer(BIG, ModelSlice(range(1), embed=True, head=True)).to(torch.bfloat16)
        kv_cache = RollingKVCache.empty(tokens, heads, width, torch.bfloat16, torch.device("meta"))
    sink = SinkKV(*(empty(n, heads, width) for n in (tokens, tokens * 3 // 2, tokens * 5 // 2)))
    turns = [Rope(*(empty(n, width // 2, dtype=torch.float32) for _ in range(2))) for n in (3 * tokens, tokens)]
    memory = BlockCache(kv_cache, Window.of(9, tokens), sink, turns[1])
    text, time = TextKV(empty(512, heads, width), empty(512, heads, width)), empty(1, 6, BIG.dim, dtype=torch.float32)
    mask = empty(speakers, 3 * tokens, 1) if speakers > 1 else None
    audio = AudioTokens(empty(speakers, 3, BIG.dim), empty(speakers, 3, 5, BIG.dim), mask)
    latent = empty(16, 3, 2 * rows, 2 * columns)
    held = [kv_cache.k, kv_cache.v, *vars(sink).values(), text.k, text.v, time, *net.parameters()]
    held += [part for turn in turns for part in (turn.cos, turn.sin)]
    with torch.inference_mode(), Allocated([*held, audio.frame, audio.tokens]) as seen:
        net.run_layers(net.embed_block(latent), time, turns[0], [text], [memory], audio)
    estimate = workspace_bytes(BIG, tokens, 2, speakers=speakers)
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
    numbers = 1.8 * PUBLISHED_AUX.decode_state * height * width
    assert numbers / 2 < seen.most / dtype.itemsize <= numbers


class Away:
    """Where what a tile remembers takes nothing of the device; knows how much it was."""

    def store(self, features):
        self.nbytes = sum(f.nbytes for f in features if f is not None)
        self.features = [f if f is None else (f.shape, f.stride()) for f in features]

    def load(self):
        return [f and torch.empty_strided(*f, dtype=torch.bfloat16, device="meta") for f in self.features]


@pytest.mark.parametrize(
    "tiles", [(1, 2), *(pytest.param(tiles, marks=pytest.mark.slow) for tiles in ((2, 2), (2, 3)))]
)
def test_tiles_fit_into_what_the_vae_is_given(tiles):
    """The peak of the device and the bytes on the host, of a decode and of an encode."""
    asked = resolve(Request(size="704x512"), (704, 512), 16_000, 16_000)
    height, width = asked.latent_size
    with torch.device("meta"):
        vae = to_channels_last(build_vae().to(torch.bfloat16))
    weights = sum(p.nbytes for p in vae.parameters())
    held, away = PUBLISHED_AUX.vae_bytes(asked.latent_size, 2, tiles), []

    def slot() -> Away:
        away.append(Away())
        return away[-1]

    with torch.inference_mode(), Allocated(vae.parameters()) as seen:
        decode = TiledDecoder(vae, empty(1, 16, 7, height, width), tiles, slot)
        decode(empty(16, 3, height, width))
    assert 0.9 * (held.device - weights) < seen.most <= held.device - weights
    assert sum(rest.nbytes for rest in away) == held.host
    with torch.inference_mode(), Allocated(vae.parameters()) as seen:
        encode_tiles(vae, empty(1, 3, 1, 8 * height, 8 * width).expand(-1, -1, 9, -1, -1), tiles)
    assert seen.most <= held.device - weights


def test_tiles_of_a_cpu_are_in_its_own_memory():
    asked = resolve(Request(size="704x512"), (704, 512), 16_000, 16_000)
    there, here = (PUBLISHED_AUX.vae_bytes(asked.latent_size, 4, (2, 2), card) for card in (True, False))
    tile = 4 * PUBLISHED_AUX.decode_state * Grid.of(*asked.latent_size, (2, 2)).tile
    assert here.host == 0 and here.device == there.device + there.host - tile
