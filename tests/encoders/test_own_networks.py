"""The encoders' networks are those of transformers, to the bit and by name."""

import pytest
import torch
import transformers

from liveavatar.encoders import umt5, wav2vec2
from liveavatar.mini.untrained import UMT5, WAV2VEC2, ByteTokenizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [8, 200])
def test_umt5_is_that_of_transformers(dtype, tokens):
    config = transformers.UMT5Config(**UMT5)
    config._attn_implementation = "eager"
    theirs = transformers.UMT5EncoderModel(config).eval().to(dtype)
    ours = umt5.UMT5EncoderModel(umt5.UMT5Config.of(config.to_dict())).eval().to(dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 384, (2, tokens), generator=torch.Generator().manual_seed(tokens))
    mask = torch.ones_like(ids)
    mask[0, tokens // 2 :] = 0
    with torch.no_grad():
        rows = [model(input_ids=ids, attention_mask=mask).last_hidden_state for model in (ours, theirs)]
    assert torch.equal(*rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
        {"num_conv_pos_embeddings": 15},
    ],
    ids=["large", "base", "odd"],
)
def test_wav2vec2_is_that_of_transformers(changed, dtype):
    config = transformers.Wav2Vec2Config(**{**WAV2VEC2, "num_hidden_layers": 3, **changed})
    theirs = transformers.Wav2Vec2Model(config).eval().to(dtype)
    ours = wav2vec2.Wav2Vec2Model(wav2vec2.Wav2Vec2Config.of(config.to_dict())).eval().to(dtype)
    ours.load_state_dict(theirs.state_dict())
    samples = torch.randn(1, 8000, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        found, expected = (model(samples, output_hidden_states=True) for model in (ours, theirs))
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    pairs = zip(found.hidden_states[:-1], expected.hidden_states[:-1], strict=True)
    assert len(found.hidden_states) == 4 and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (umt5.UMT5Config, {"feed_forward_proj": "relu"}, "feed_forward_proj"),
        (wav2vec2.Wav2Vec2Config, {"hidden_act": "relu"}, "hidden_act"),
        (wav2vec2.Wav2Vec2Config, {"feat_extract_norm": "batch"}, "feat_extract_norm"),
        (wav2vec2.Wav2Vec2Config, {"conv_dim": [16]}, "one length"),
        (wav2vec2.Wav2Vec2Config, {"num_attention_heads": 7}, "heads"),
    ],
)
def test_other_networks_are_refused(kind, settings, why):
    with pytest.raises(ValueError, match=why):
        kind.of(settings)


@pytest.mark.parametrize("text", ["A woman speaks.", "", "Grüße, 你好", "long " * 20])
def test_bytes_are_read_as_byt5_reads_them(text):
    theirs, ours = transformers.ByT5Tokenizer(), ByteTokenizer()
    words = {"padding": "max_length", "truncation": True, "max_length": 40, "return_tensors": "pt"}
    found, expected = ours([text], **words), theirs([text], add_special_tokens=True, **words)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(found[name], expected[name])
    if len(text.encode()) < 40:
        assert ours.decode(found["input_ids"][0]) == text
