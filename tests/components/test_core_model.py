"""A model from the single files of ComfyUI's folders is the model of the official folder, or is refused."""

import dataclasses
import json

import fakes
import pytest
import torch
from safetensors.torch import load_file, save_file
from weights.core_files import CoreFiles, as_bytes, matrices, write_core_files

from liveavatar.components import FolderComponents, open_components
from liveavatar.config import UNTRAINED
from liveavatar.encoders.audio import hidden_states
from liveavatar.encoders.text import encode_text
from liveavatar.errors import LiveAvatarError, LoRAError, MissingFilesError, ModelError
from liveavatar.model.transformer import ModelSlice
from liveavatar.vae.wan import encode
from liveavatar.weights.folder import AUDIO_FOLDER, TOKENIZER_FOLDER, find_model, format_inspection, inspect_model
from liveavatar.weights.quantised import SPIECE

SMALL = dataclasses.replace(UNTRAINED, num_layers=2, audio_inject_layers=(0, 1), audio_layers=3, audio_dim=64)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = fakes.write_official_folder(tmp_path_factory.mktemp("models") / "Wan2.2-S2V-14B", SMALL)
    settings = folder / AUDIO_FOLDER / "config.json"
    one_head = json.loads(settings.read_text()) | {"num_attention_heads": 1}  # of 64 numbers, as the published ones
    settings.write_text(json.dumps(one_head))
    return folder


@pytest.fixture
def core(official, tmp_path):
    return write_core_files(tmp_path / "models", official)


def opened(files: CoreFiles, official, **changed):
    """The components of single files; a small network still needs its configuration."""
    given = {"config": official / "config.json", **files.beside} | changed
    return FolderComponents(find_model(given.pop("transformer", files.transformer), **given), name="core")


def state(components, part="transformer", dtype=torch.float32):
    if part == "transformer":
        return components.transformer(ModelSlice.whole(SMALL), "cpu", dtype).state_dict()
    made = getattr(components, part)("cpu", dtype)
    return (made[0] if part == "text_encoder" else made).state_dict()


def assert_same(actual, wanted, **tolerance):
    assert actual.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(actual[key], tensor, **({"atol": 0, "rtol": 0} | tolerance), msg=key)


# -- the same model --


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_every_part_is_the_same_network_as_in_the_official_folder(official, tmp_path, prefix):
    components = opened(write_core_files(tmp_path, official, "bf16", prefix), official)
    original = open_components(official)
    assert components.config == original.config
    for part in ("transformer", "vae", "text_encoder"):
        assert_same(state(components, part), state(original, part))
    # The published audio file is in float16.
    assert_same(state(components, "audio_encoder"), state(original, "audio_encoder"), atol=1e-5, rtol=1e-3)


def test_what_the_parts_compute_is_the_same(official, core):
    components, original = opened(core, official), open_components(official)
    pixels = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    latents = [encode(each.vae("cpu", torch.float32), pixels) for each in (components, original)]
    assert torch.equal(*latents)
    wave = torch.randn(16000, generator=torch.Generator().manual_seed(1)).numpy()
    heard = [hidden_states(each.audio_encoder("cpu", torch.float32), wave) for each in (components, original)]
    for ours, theirs in zip(*heard, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


def test_the_text_encoder_reads_with_the_tokenizer_it_carries(official, core):
    encoder, tokenizer = opened(core, official).text_encoder("cpu", torch.float32)
    rows = encode_text(encoder, tokenizer, "A woman speaks.", length=40)
    assert rows.shape[1] == SMALL.text_dim
    assert 4 <= len(rows) <= 17
    assert rows.isfinite().all()


def test_a_tokenizer_that_is_given_comes_first(official, core):
    given = official / TOKENIZER_FOLDER
    assert opened(core, official).files.tokenizer is None
    components = opened(core, official, tokenizer=given)
    assert components.files.tokenizer == given
    original = open_components(official).text_encoder("cpu", torch.float32)
    texts = [encode_text(*pair, "A woman.", 20) for pair in (components.text_encoder("cpu", torch.float32), original)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("form", ["old fp8", "old fp8 per row", "fp8 by marks", "fp8 by header"])
def test_fp8_is_dequantised_merged_and_rounded_once(official, tmp_path, form):
    files = write_core_files(tmp_path, official, form, "diffusion_model.")
    components = opened(files, official)
    stored, lora = load_file(files.transformer), load_file(files.lora)
    for dtype in (torch.float32, torch.bfloat16):
        merged = state(components, dtype=dtype)
        for key in matrices(merged):
            layer = key.removesuffix(".weight")
            name = f"diffusion_model.{layer}."
            scale = stored.get(f"{name}scale_weight", stored.get(f"{name}weight_scale")).reshape(-1, 1)
            a, b = (lora.get(f"{layer}.lora_{half}.default.weight", torch.zeros(1, 1)).float() for half in "AB")
            exact = ((b @ a) * (64 / fakes.LORA_RANK)) + stored[f"{name}weight"].float() * scale
            assert torch.equal(merged[key], exact.to(dtype)), key
    original = state(open_components(official))
    for key in matrices(original):
        assert (merged[key].float() - original[key]).norm() < 0.04 * original[key].norm(), key
    assert_same(
        state(components, "text_encoder"), state(open_components(official), "text_encoder"), atol=0.05, rtol=0.0626
    )


def test_the_description_says_what_is_in_fp8_and_where_the_tokenizer_is(official, tmp_path):
    text = opened(write_core_files(tmp_path, official, "old fp8"), official).describe()
    assert "30 matrices in fp8" in text
    assert "28 pairs, scale 16" in text
    assert "tokenizer: in the text encoder's file" in text


def test_an_official_folder_takes_single_parts(official, core):
    components = FolderComponents(find_model(official, text_encoder=core.text_encoder, vae=str(core.vae)))
    assert components.files.tokenizer is None
    assert_same(state(components, "text_encoder"), state(open_components(official), "text_encoder"))


def test_the_inspection_shows_every_part(official, tmp_path):
    files = write_core_files(tmp_path, official, "fp8 by header")
    found = inspect_model(files.transformer, config=official / "config.json", **files.beside)
    assert found.complete
    text = format_inspection(found)
    assert "30 matrices in fp8" in text
    assert "in umt5.safetensors" in text
    assert text.endswith("Complete.")


def test_no_matrix_is_read_while_a_model_is_opened(official, tmp_path, monkeypatch):
    from liveavatar.weights.source import SafetensorsSource

    files = write_core_files(tmp_path, official, "fp8 by marks")
    read, original = [], SafetensorsSource.read

    def recorded(self, key):
        read.append(key)
        return original(self, key)

    monkeypatch.setattr(SafetensorsSource, "read", recorded)
    opened(files, official)
    assert {key.rpartition(".")[2] for key in read} == {"weight_scale", "comfy_quant"}


# -- the audio encoder's settings --


@pytest.mark.parametrize("published", ["large", "base"])
def test_settings_of_published_audio_encoders_are_read_off_their_shapes(tmp_path, published):
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from liveavatar.weights.settings import audio_settings

    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    large |= {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
    wanted = Wav2Vec2Config(**(large if published == "large" else {}))
    with torch.device("meta"):
        shapes = {f"wav2vec2.{k}": tuple(v.shape) for k, v in Wav2Vec2Model(wanted).state_dict().items()}
    path = tmp_path / "audio.safetensors"
    write_sparse(path, shapes)
    found = Wav2Vec2Config(**audio_settings(path))
    for name in (*large, "conv_dim", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "conv_kernel"):
        assert tuple_or(getattr(found, name)) == tuple_or(getattr(wanted, name)), name


def tuple_or(value):
    return tuple(value) if isinstance(value, list | tuple) else value


def write_sparse(path, shapes):
    """A safetensors file that takes little room on disk: zeros but for one number in the middle of each tensor."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    with path.open("wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        f.truncate(8 + len(header) + end)
        for entry in entries.values():
            f.seek(8 + len(header) + sum(entry["data_offsets"]) // 2)
            f.write(b"1")


# -- what is refused --

SWAPS = {
    "VAE as text encoder": (
        {"text_encoder": "vae"},
        r"wan_2\.1_vae.* is a VAE of Wan 2\.1, not a UMT5 text",
        "umt5_xxl",
    ),
    "text encoder as VAE": ({"vae": "text_encoder"}, "umt5.* is a UMT5 text encoder, not a VAE", "wan_2.1_vae"),
    "text encoder as sound": ({"audio_encoder": "text_encoder"}, "not a wav2vec2", "wav2vec2_large_english_fp16"),
    "transformer as LoRA": ({"lora": "transformer"}, "transformer of Wan 2.2, not a LoRA", "liveavatar.safetensors"),
    "LoRA as transformer": ({"transformer": "lora"}, "is a LoRA, not a sound-to-video", "wan2.2_s2v_14B"),
}


@pytest.mark.parametrize("what", SWAPS)
def test_files_in_each_others_place_are_refused_by_name(official, core, what):
    changed, message, nearest = SWAPS[what]
    with pytest.raises(ModelError, match=message) as refusal:
        opened(core, official, **{field: getattr(core, other) for field, other in changed.items()})
    assert nearest in refusal.value.nearest
    (field, other), *_ = changed.items()
    root = getattr(core, other) if field == "transformer" else core.transformer
    given = core.beside | ({} if field == "transformer" else {field: getattr(core, other)})
    assert "another" in format_inspection(inspect_model(root, **given))


def rewritten(path, change):
    tensors = load_file(path)
    save_file(change(tensors), path)


def without(part):
    return lambda tensors: {key: t for key, t in tensors.items() if part not in key}


SPOILT = {
    "T5 in place of UMT5": (
        "text_encoder",
        without("block.1.layer.0.SelfAttention.relative_attention_bias"),
        "is a T5 text encoder, which is older than UMT5",
    ),
    "no word embedding": ("text_encoder", without("shared"), "no UMT5 encoder"),
    "no tokenizer anywhere": ("text_encoder", without(SPIECE), r"tokenizer .*umt5\.safetensors carries none"),
    "no bytes": ("text_encoder", lambda t: t | {SPIECE: torch.zeros(3)}, "tokenizer in .* is damaged"),
    "half a VAE": ("vae", lambda t: t | {"decoder.new.weight": torch.zeros(1)}, r"decoder\.new.*not a tensor"),
    "no positions": ("audio_encoder", without("pos_conv_embed"), "no wav2vec2 encoder"),
    "mixed norms": ("audio_encoder", without("conv_layers.3.layer_norm"), "unknown form"),
    "two layers of sound lost": ("audio_encoder", without("encoder.layers.1."), "has 2 hidden states, not 3"),
    "a layer of the network lost": ("transformer", without("blocks.1.ffn"), "lacks 4 of the tensors"),
    "half a LoRA": ("lora", without("blocks.1.ffn.0.lora_B"), "27 of the 28 pairs"),
    "a scale of half the rows": (
        "transformer",
        lambda t: t | {"blocks.1.ffn.0.scale_weight": torch.ones(5)},
        r"stores blocks\.1\.ffn\.0 in parts",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_files_are_refused_before_anything_is_loaded(official, core, what):
    field, change, message = SPOILT[what]
    rewritten(getattr(core, field), change)
    with pytest.raises(LiveAvatarError, match=message) as refusal:
        opened(core, official)
    assert isinstance(refusal.value, ModelError | LoRAError)
    assert refusal.value.nearest


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(CoreFiles)])
def test_cut_files_are_refused_by_name(official, core, field):
    path = getattr(core, field)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ModelError, match=rf"{path.name}.*cut off"):
        opened(core, official)


def test_a_tokenizer_of_another_encoder_is_refused_when_it_is_made(official, core):
    rewritten(core.text_encoder, lambda t: t | {SPIECE: as_bytes(b"no tokenizer")})
    with pytest.raises(ModelError, match=r"umt5\.safetensors is damaged"):
        opened(core, official).text_encoder("cpu", torch.float32)


def test_the_lora_stays_required(core, official):
    with pytest.raises(MissingFilesError, match="LoRA"):
        opened(core, official, lora=None)


def test_a_small_network_without_its_configuration_is_not_taken_for_the_published_one(core, official):
    with pytest.raises(MissingFilesError, match=r"2 layers of width 96.*config\.json"):
        opened(core, official, config=None)
