"""The text encoder, filled through our key map, gives the published implementation's rows."""

import inspect

import pytest
import torch
from golden.cases import Case, assert_matches, cases

from liveavatar.encoders.text import clean_prompt, encode_tokens
from liveavatar.weights.keymaps import umt5_to_transformers


def build(case: Case) -> torch.nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    info, weights = case.info["config"]["model"], case.sibling("t5_weights").state_dict()
    config = UMT5Config(
        vocab_size=info["vocab_size"],
        d_model=info["dim"],
        d_kv=info["dim_attn"] // info["num_heads"],
        d_ff=info["dim_ffn"],
        num_layers=info["encoder_layers"],
        num_heads=info["num_heads"],
        relative_attention_num_buckets=info["num_buckets"],
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        is_encoder_decoder=False,
        use_cache=False,
        attn_implementation="eager",
    )
    model = UMT5EncoderModel(config).eval()
    result = model.load_state_dict({umt5_to_transformers(k): v for k, v in weights.items()}, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {"encoder.embed_tokens.weight"}, "tied to shared.weight"
    return model


@pytest.mark.parametrize("case", cases("t5", "t5_weights"))
def test_contexts_are_the_published_ones(case: Case) -> None:
    rows = encode_tokens(build(case), case["ids"], case["mask"])
    assert len(rows) == len(case.info["config"]["lens"])
    for i, (row, length) in enumerate(zip(rows, case.info["config"]["lens"], strict=True)):
        assert len(row) == length
        if f"context.{i}" in case:
            assert_matches(row, case[f"context.{i}"], f"context.{i}")


@pytest.mark.parametrize("case", cases("t5", "t5_weights"))
def test_relative_positions_are_the_published_ones(case: Case) -> None:
    attention = build(case).encoder.block[0].layer[0].SelfAttention
    length = case["ids"].shape[1]
    known = inspect.signature(attention.compute_bias).parameters
    extra = {"cache_position": torch.arange(length)} if "cache_position" in known else {}
    with torch.inference_mode():
        bias = attention.compute_bias(length, length, **extra)[0]
    for key, actual in (("block0.pos_bias_row0", bias[:, 0]), ("block0.pos_bias_col0", bias[:, :, 0])):
        if key in case:
            assert_matches(actual, case[key], key)


@pytest.mark.parametrize("case", cases("t5"))
def test_prompts_are_cleaned_as_published(case: Case) -> None:
    for given, expected in case.info.get("text_clean_whitespace", []):
        assert clean_prompt(given) == expected
