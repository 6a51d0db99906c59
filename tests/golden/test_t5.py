"""The text encoder, filled through our key map, gives the published implementation's rows."""

import inspect

import pytest
import torch
from golden.cases import Case, assert_matches, cases
from golden.encoders import umt5

from liveavatar.encoders.text import clean_prompt, encode_tokens


@pytest.mark.parametrize("case", cases("t5", "t5_weights"))
def test_contexts_are_the_published_ones(case: Case) -> None:
    rows = encode_tokens(umt5(case), case["ids"], case["mask"])
    assert len(rows) == len(case.info["config"]["lens"])
    for i, (row, length) in enumerate(zip(rows, case.info["config"]["lens"], strict=True)):
        assert len(row) == length
        if f"context.{i}" in case:
            assert_matches(row, case[f"context.{i}"], f"context.{i}")


@pytest.mark.parametrize("case", cases("t5", "t5_weights"))
def test_relative_positions_are_the_published_ones(case: Case) -> None:
    attention = umt5(case).encoder.block[0].layer[0].SelfAttention
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
