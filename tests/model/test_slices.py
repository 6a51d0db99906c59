"""Parts of the network are slices of the whole: same keys, same numbers; the compiler takes them in one graph."""

import torch
from engine.tiny import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.config import UNTRAINED, ModelConfig
from liveavatar.model.kv_cache import BlockCache, RollingKVCache, SinkRecorder, Window
from liveavatar.model.layer import AudioTokens
from liveavatar.model.rope import RopeGrid
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice
from liveavatar.request import SinkDistance

DAY_BLOCKS = 200_000
"""More than a day of video."""


def network(config: ModelConfig) -> CausalS2VTransformer:
    torch.manual_seed(3)
    return CausalS2VTransformer(config, ModelSlice.whole(config)).eval().requires_grad_(False)


def block_inputs(net: CausalS2VTransformer, block: int, rows: int = 4, columns: int = 4) -> tuple:
    """Everything `run_layers` wants for a block, with a sink of the same numbers each time."""
    config, grid = net.config, RopeGrid(rows, columns, net.config.head_dim)
    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(16, 20, 2 * rows, 2 * columns, generator=generator)
    text = net.text_kv(net.embed_text(torch.randn(3, config.text_dim, generator=generator)))
    time = net.embed_timesteps([700.0, 0.0])
    sinks = [SinkRecorder(grid.tokens) for _ in net.slice.layers]
    net.run_layers(
        net.embed_sink(latents[:, :1], latents[:, 1:]),
        net.modulation(time.layers[1]),
        grid.reference() + grid.motion(),
        text,
        sinks,
        None,
    )
    shape = (grid.tokens, config.num_heads, config.head_dim, torch.float32, torch.device("cpu"))
    window = Window.of(block, grid.tokens)
    reference = grid.reference(SinkDistance("fixed").reference_time_id(0, block, 0))
    memories = [BlockCache(RollingKVCache.empty(*shape), window, m.sink, reference) for m in sinks]
    audio = net.embed_audio(torch.randn(1, config.audio_layers, config.audio_dim, 12, generator=generator))
    x = net.embed_block(latents[:, :3])
    return x, net.modulation(time.layers[0]), grid.block(block), text, memories, audio


@given(st.integers(1, 5), st.data())
def test_the_keys_of_any_slices_add_up_to_the_checkpoint(layers: int, data: st.DataObject) -> None:
    config = tiny_config(layers)
    cut = data.draw(st.integers(0, layers))
    whole = set(network(config).state_dict())
    parts = [
        ModelSlice(range(cut), embed=True),
        ModelSlice(range(cut, layers), head=True),
        ModelSlice(range(0), embedders=True),
    ]
    keys = [set(CausalS2VTransformer(config, p).state_dict()) for p in parts]
    assert set.union(*keys) == whole
    assert sum(map(len, keys)) == len(whole)


def test_slices_compute_what_the_whole_computes() -> None:
    config = tiny_config(4)
    net = network(config)
    x, modulation, rope, text, memories, audio = block_inputs(net, 2)
    expected = net.run_layers(x, modulation, rope, text, memories, audio)
    for cut in range(5):
        y = x
        for layers in (range(cut), range(cut, 4)):
            piece = CausalS2VTransformer(config, ModelSlice(layers)).requires_grad_(False)
            piece.load_state_dict({k: net.state_dict()[k] for k in piece.state_dict()})
            own = slice(layers.start, layers.stop)
            y = piece.run_layers(y, modulation[own], rope, text[own], memories[own], audio)
        assert torch.equal(y, expected), cut


def test_far_positions_are_as_finite_and_as_different_as_near_ones() -> None:
    net = network(UNTRAINED)
    near, far, next_far = (net.run_layers(*block_inputs(net, b)) for b in (8, DAY_BLOCKS, DAY_BLOCKS + 1))
    assert torch.isfinite(far).all()
    assert not torch.equal(near, far)
    assert (far - next_far).abs().max() < 10 * (near - far).abs().max() + 1.0


def test_only_the_audio_of_the_block_is_heard() -> None:
    net = network(tiny_config())
    a, b = torch.randn(2, 1, net.config.audio_layers, net.config.audio_dim, 12)
    b[..., :8] = a[..., :8]
    ours, other = net.embed_audio(a), net.embed_audio(b)
    assert torch.equal(ours.frame[:, 0], other.frame[:, 0])
    assert not torch.equal(ours.frame[:, 2], other.frame[:, 2])


def test_two_actors_with_masks_that_part_the_picture_act_alone_in_their_half() -> None:
    net = network(tiny_config())
    x, *_, audio = block_inputs(net, 0)
    hear = net.audio_injector
    left = torch.zeros(1, 3, 4, 4, 1)
    left[..., :2, :] = 1
    both = AudioTokens(
        audio.frame.repeat(2, 1, 1), audio.tokens.repeat(2, 1, 1, 1), torch.cat((left, 1 - left)).flatten(1, 3)
    )
    assert torch.allclose(hear(0, x, both), hear(0, x, audio), atol=1e-5)


def test_the_layer_stack_compiles_into_one_graph() -> None:
    net = network(tiny_config(2))
    inputs = [block_inputs(net, 5) for _ in range(2)]
    compiled = torch.compile(net.run_layers, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(*inputs[0]), net.run_layers(*inputs[1]), atol=1e-5)
    kv_caches = [[m.kv_cache.k for m in i[4]] for i in inputs]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*kv_caches, strict=True))
