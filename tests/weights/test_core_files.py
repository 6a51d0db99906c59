"""Single files of ComfyUI's own form: every form is read as the numbers that were meant, other kinds are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from weights.core_files import FORMS, LARGEST, as_bytes, matrices, quantise, save

from liveavatar.errors import LiveAvatarError, ModelError
from liveavatar.weights.formats import open_transformer
from liveavatar.weights.kinds import PREFIXES, Kind, kind_of
from liveavatar.weights.lora import LoRASource, distillation_lora
from liveavatar.weights.quantised import DequantisedSource
from liveavatar.weights.source import DictSource, SafetensorsSource

G = torch.Generator().manual_seed(3)
Q, FFN, NORM = "blocks.0.self_attn.q.weight", "blocks.0.ffn.0.weight", "blocks.0.norm3.weight"
NETWORK = {
    Q: torch.randn(24, 24, generator=G).bfloat16() / 8,
    "blocks.0.self_attn.q.bias": torch.randn(24, generator=G).bfloat16(),
    FFN: torch.randn(40, 24, generator=G).bfloat16() * 100,
    NORM: torch.randn(24, generator=G).bfloat16(),
    "head.modulation": torch.randn(1, 2, 24, generator=G).bfloat16(),
    "casual_audio_encoder.encoder.final_linear.weight": torch.randn(24, 24, generator=G).bfloat16(),
}
QUANTISED = [form for form in FORMS if "fp8" in form]


def written(path, form, prefix="", **extra):
    save(path / "one.safetensors", NETWORK, form, prefix, extra)
    return open_transformer(path / "one.safetensors")


def within_fp8(actual, wanted, form):
    """Half a step of three mantissa bits, or half of the smallest number (2^-9, scaled)."""
    scale = 1.0 if form == "plain fp8" else wanted.abs().max() / LARGEST
    slack = wanted.abs() / 16 + scale * 2**-10
    return bool(((actual - wanted).abs() <= slack * 1.01).all())


@pytest.mark.parametrize("prefix", ["", "_orig_mod.ema.", *PREFIXES])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_tensors_that_were_meant(tmp_path, form, prefix):
    source = written(tmp_path, form, prefix)
    assert source.keys() == set(NETWORK)
    for key, wanted in NETWORK.items():
        assert source.shape(key) == tuple(wanted.shape)
        if key not in matrices(NETWORK) or form == "bf16":
            torch.testing.assert_close(source.read(key).float(), wanted.float(), atol=0, rtol=2e-3)
        else:
            assert within_fp8(source.read(key).float(), wanted.float(), form), key
    scaled = len(matrices(NETWORK)) if form in QUANTISED and form != "plain fp8" else 0
    assert source.layouts() == (f"{scaled} matrices in fp8" if scaled else "")
    assert ("in fp8" in source.describe()) == bool(scaled)


@pytest.mark.parametrize("form", QUANTISED)
def test_dequantising_is_exact_in_float32(tmp_path, form):
    stored, _ = quantise(NETWORK, form)
    for key in matrices(NETWORK):
        layer = key.removesuffix(".weight")
        scale = stored.get(f"{layer}.scale_weight", stored.get(f"{layer}.weight_scale", torch.ones(())))
        assert torch.equal(written(tmp_path, form).read(key).float(), stored[key].float() * scale.reshape(-1, 1))


def test_no_tensor_is_changed_by_being_read(tmp_path):
    save_file({"a.weight": torch.full((2, 2), 3.0), "a.scale_weight": torch.tensor(2.0)}, tmp_path / "a.safetensors")
    source = DequantisedSource(SafetensorsSource(tmp_path / "a.safetensors"))
    assert all(torch.equal(source.read("a.weight"), torch.full((2, 2), 6.0)) for _ in range(2))


def test_tensors_of_other_models_in_the_file_are_left_out(tmp_path):
    save_file(
        {f"model.diffusion_model.{key}": t for key, t in NETWORK.items()} | {"vae.conv.weight": torch.ones(2)},
        tmp_path / "checkpoint.safetensors",
    )
    assert open_transformer(tmp_path / "checkpoint.safetensors").keys() == set(NETWORK)


@pytest.mark.parametrize("form", FORMS)
def test_a_lora_is_merged_in_float32_and_rounded_once(tmp_path, form):
    base = written(tmp_path, form)
    a, b = torch.randn(4, 24, generator=G), torch.randn(24, 4, generator=G)
    lora = DictSource({f"{Q[:-7]}.lora_A.weight": a, f"{Q[:-7]}.lora_B.weight": b})
    merged = LoRASource(base, [distillation_lora(base, lora, [Q[:-7]], alpha=2.0)]).read(Q)
    exact = base.read(Q).float() + 0.5 * (b @ a)
    assert torch.equal(merged.bfloat16(), (0.5 * (b @ a)).add_(base.read(Q)).bfloat16())
    if merged.dtype != torch.bfloat16:
        torch.testing.assert_close(merged, exact, atol=1e-6, rtol=1e-6)


# -- what is refused --


def scale_of(layer, tensor, name="weight_scale"):
    return {f"{layer}.{name}": tensor}


ONE = Q.removesuffix(".weight")
WRONG = {
    "blocks of 32": ({**scale_of(ONE, torch.ones(24, 2))}, r"parts \(scales \[24, 2\] for \[24, 24\]\)"),
    "a row of scales": (scale_of(ONE, torch.ones(24)), r"parts \(scales \[24\] for \[24, 24\]\)"),
    "scales in bytes": ({**scale_of(ONE, torch.ones(24, 1, dtype=torch.uint8))}, "scales of U8"),
    "nvfp4": (
        {**scale_of(ONE, torch.ones(())), **scale_of(ONE, torch.ones(()), "weight_scale_2")},
        "another way than fp8",
    ),
    "int8": ({Q: torch.ones(24, 24, dtype=torch.int8), **scale_of(ONE, torch.ones(()))}, "I8"),
    "two scales": ({**scale_of(ONE, torch.ones(())), **scale_of(ONE, torch.ones(()), "scale_weight")}, "two scales"),
    "a scale of nothing": (scale_of("blocks.7.ffn.0", torch.ones(())), "a scale but no matrix for blocks.7"),
    "a mark without scale": (
        scale_of(ONE, as_bytes(b'{"format": "float8_e4m3fn"}'), "comfy_quant"),
        f"lacks the scale of {ONE}",
    ),
    "a mark not in bytes": (
        scale_of(ONE, torch.ones(2), "comfy_quant") | scale_of(ONE, torch.ones(())),
        "not said in bytes but in F32",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_other_quantisations_are_refused_before_anything_is_read(tmp_path, what):
    extra, message = WRONG[what]
    save_file(NETWORK | extra, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match=message) as refusal:
        open_transformer(tmp_path / "one.safetensors")
    assert "one.safetensors" in refusal.value.what
    assert "fp8_scaled" in refusal.value.nearest


BESIDE = {
    "a zero point": ({f"{Q}_zero_point": torch.zeros(24)}, "fp8 with _zero_point beside it|fp8 with weight_zero_point"),
    "another scale": ({f"{ONE}.scale": torch.ones(())}, "fp8 with scale beside it"),
    "a table": ({f"{Q}.table": torch.ones(16)}, r"fp8 with weight\.table beside it"),
    "the scale of a bias": ({f"{ONE}.bias_scale": torch.ones(())}, "fp8 with bias_scale beside it"),
    "only the scale of inputs": ({f"{ONE}.input_scale": torch.ones(())}, f"lacks the scale of {ONE}"),
    "bnb 4": ({f"{Q}.quant_state.bitsandbytes__nf4": as_bytes(b"{}")}, f"{ONE} in 4 bits by bitsandbytes"),
    "bnb 4 too": ({f"{Q}.absmax": torch.ones(9)}, "4 bits by bitsandbytes"),
    "bnb 8": ({f"{ONE}.SCB": torch.ones(24)}, "8 bits by bitsandbytes"),
    "gptq": ({f"{ONE}.qweight": torch.ones(24, 24, dtype=torch.int32)}, "GPTQ"),
    "quanto": ({f"{Q}._scale": torch.ones(24, 1)}, "quanto"),
}


@pytest.mark.parametrize("what", BESIDE)
def test_an_fp8_matrix_with_something_unknown_beside_it_is_refused(tmp_path, what):
    extra, message = BESIDE[what]
    stored, _ = quantise(NETWORK, "plain fp8")
    save_file(stored | extra, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match=message):
        open_transformer(tmp_path / "one.safetensors")


@pytest.mark.parametrize("form", [form for form in QUANTISED if form != "plain fp8"])
def test_one_scale_that_is_missing_among_others_is_refused(tmp_path, form):
    stored, header = quantise(NETWORK, form)
    layer = FFN.removesuffix(".weight")
    lost = {f"{layer}.{last}" for last in ("scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant")}
    save_file({key: tensor for key, tensor in stored.items() if key not in lost}, tmp_path / "one.safetensors", header)
    with pytest.raises(ModelError, match=f"lacks the scale of {layer}"):
        open_transformer(tmp_path / "one.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_whole_numbers_are_no_weights(tmp_path, dtype):
    save_file(NETWORK | {Q: torch.ones(24, 24).to(dtype)}, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match=f"stores {ONE} in whole numbers"):
        open_transformer(tmp_path / "one.safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_of_zeros_is_an_unfinished_download(tmp_path, form):
    stored, header = quantise(NETWORK, form)
    save_file(stored | {Q: torch.zeros_like(stored[Q])}, tmp_path / "one.safetensors", header)
    with pytest.raises(ModelError, match=f"only zeros for {Q}: a download that has not finished"):
        open_transformer(tmp_path / "one.safetensors")
    almost = torch.zeros(24, 24)
    almost[-1, -1] = 1
    save_file(stored | {Q: almost.to(stored[Q].dtype)}, tmp_path / "one.safetensors", header)
    assert open_transformer(tmp_path / "one.safetensors").read(Q).any()


def test_what_begins_training_as_zeros_may_be_zeros(tmp_path):
    untouched = {
        "trainable_cond_mask.weight": torch.zeros(3, 512),
        "audio_injector.injector.0.o.weight": torch.zeros(24, 24),
    }
    save_file(NETWORK | untouched, tmp_path / "one.safetensors")
    assert open_transformer(tmp_path / "one.safetensors").keys() == set(NETWORK | untouched)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"layers": {"blocks.0.self_attn.q": {"format": "svdquant_w4a4"}}}', "in svdquant_w4a4"),
        ('{"layers": {"blocks.0.self_attn.q": {"format": "mxfp8"}}}', "lacks the scale"),
        ('{"layers": {"blocks.0.self_attn.q": {"format": "float8_e4m3fn"}}}', "lacks the scale"),
        ('{"layers": {"blocks.0.self_attn.q": 3}}', "stores blocks.0.self_attn.q in 3"),
        ("{", "damaged"),
        ('{"layers": []}', "damaged"),
    ],
)
def test_headers_that_promise_something_else_are_refused(tmp_path, header, message):
    save_file(NETWORK, tmp_path / "one.safetensors", metadata={"_quantization_metadata": header})
    with pytest.raises(ModelError, match=message):
        open_transformer(tmp_path / "one.safetensors")


@pytest.mark.parametrize(
    ("mark", "scale", "message"),
    [
        (b'{"format": "nvfp4"}', 1.0, "nvfp4"),
        (b"no json", 1.0, "None"),
        (b"[" * 4000, 1.0, "None"),
        (b"{" * 5000, 1.0, "said in a tensor"),
        (b"", float("nan"), "not finite"),
        (b"", float("inf"), "not finite"),
        (b"", 0.0, "that is 0"),
        (b"", -1.0, "negative"),
    ],
)
def test_what_shows_only_in_a_tensor_is_refused_when_the_file_is_opened(tmp_path, mark, scale, message):
    extra = scale_of(ONE, torch.tensor(scale)) | (scale_of(ONE, as_bytes(mark), "comfy_quant") if mark else {})
    save_file(NETWORK | extra, tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match=message):
        open_transformer(tmp_path / "one.safetensors")


def test_a_cut_file_is_refused(tmp_path):
    written(tmp_path, "old fp8")
    path = tmp_path / "one.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut off"):
        open_transformer(path)


@given(
    names=st.dictionaries(
        st.sampled_from(["a", "b", "blocks.0.q"]),
        st.sets(st.sampled_from(["weight", "scale_weight", "weight_scale", "comfy_quant", "weight_scale_2", "bias"])),
    ),
    shape=st.sampled_from([(), (1,), (3,), (3, 1), (3, 2)]),
)
def test_any_bookkeeping_is_read_or_refused_with_a_typed_error(tmp_path_factory, names, shape):
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    tensors = {f"{layer}.{last}": torch.ones(shape) for layer, lasts in names.items() for last in lasts}
    tensors |= {key: torch.ones(3, 2).to(torch.float8_e4m3fn) for key in tensors if key.endswith(".weight")}
    save_file(tensors, path)
    try:
        source = DequantisedSource(SafetensorsSource(path))
        found = {key: tuple(source.read(key).shape) for key in sorted(source.keys())}
        assert found == {key: source.shape(key) for key in found}
    except LiveAvatarError as e:
        assert str(path) in e.what


# -- what a file is --

KEYS = {
    Kind.TRANSFORMER: ["head.modulation", "casual_audio_encoder.encoder.final_linear.weight"],
    Kind.OTHER_WAN: ["model.diffusion_model.head.modulation", "model.diffusion_model.blocks.0.ffn.0.weight"],
    Kind.DIFFUSERS: ["condition_embedder.time_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight"],
    Kind.UNMERGED: ["base_model.model.head.modulation", "base_model.model.blocks.0.ffn.0.lora_A.default.weight"],
    Kind.LORA: ["diffusion_model.blocks.0.ffn.0.lora_down.weight", "diffusion_model.blocks.0.ffn.0.lora_up.weight"],
    Kind.VAE: ["decoder.middle.0.residual.0.gamma"],
    Kind.VAE_2_2: ["decoder.middle.0.residual.0.gamma", "decoder.upsamples.0.upsamples.0.residual.2.weight"],
    Kind.TINY_VAE: ["encoder.0.weight", "decoder.1.weight", "decoder.3.conv.0.weight", "decoder.22.bias"],
    Kind.TEXT: [f"encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight" for i in range(24)],
    Kind.T5: [f"encoder.block.{i}.layer.0.SelfAttention.q.weight" for i in range(24)]
    + ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"],
    Kind.CLIP: ["text_model.encoder.layers.0.mlp.fc1.weight"],
    Kind.AUDIO: ["wav2vec2.encoder.pos_conv_embed.conv.weight_g"],
    Kind.WHISPER: ["model.encoder.embed_positions.weight"],
}


@pytest.mark.parametrize("kind", Kind)
def test_files_are_known_by_their_names(kind):
    assert kind_of(frozenset(KEYS[kind])) is kind


def test_a_stranger_is_nothing():
    assert kind_of(frozenset({"a.weight"})) is None
    assert kind_of(frozenset()) is None


def test_another_wan_transformer_is_refused_with_the_right_files(tmp_path):
    silent = {key: t for key, t in NETWORK.items() if "audio" not in key}
    save_file(silent, tmp_path / "t2v.safetensors")
    with pytest.raises(ModelError, match=r"t2v\.safetensors is a Wan transformer of another kind") as refusal:
        open_transformer(tmp_path / "t2v.safetensors")
    assert "wan2.2_s2v_14B_fp8_scaled" in refusal.value.nearest


def test_what_is_written_is_what_core_writes(tmp_path):
    """The files of these tests hold fp8 and its bookkeeping, not a paraphrase."""
    written(tmp_path, "old fp8", "model.diffusion_model.")
    stored = load_file(tmp_path / "one.safetensors")
    assert stored[f"model.diffusion_model.{Q}"].dtype == torch.float8_e4m3fn
    assert stored["model.diffusion_model.scaled_fp8"].dtype == torch.float8_e4m3fn
    assert stored[f"model.diffusion_model.{ONE}.scale_weight"].dtype == torch.float32
