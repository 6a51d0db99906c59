"""A prompt becomes the rows of its real tokens, whatever is typed."""

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.encoders.text import clean_prompt, encode_text, prompt_notes
from liveavatar.errors import RequestError
from liveavatar.request import DEFAULT_PROMPT


class Words:
    """A tokenizer with one token per letter and an end mark, called like Hugging Face's."""

    def __call__(self, texts: list[str], *, padding: str, truncation: bool, max_length: int, **_: object) -> dict:
        assert padding == "max_length" and truncation
        ids = [*map(ord, texts[0][: max_length - 1]), 1]
        pad = max_length - len(ids)
        return {
            "input_ids": torch.tensor([ids + [0] * pad]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * pad]),
        }

    def decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> str:
        return "".join(chr(i) for i in ids.tolist() if i > 1)


class Echo(torch.nn.Module):
    """A model whose rows are its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        assert input_ids.shape == attention_mask.shape
        return SimpleNamespace(last_hidden_state=input_ids[..., None] * self.scale)


def test_rows_are_those_of_the_real_tokens_in_the_models_dtype() -> None:
    rows = encode_text(Echo(), Words(), "  a&amp;amp;b\n", length=16)
    assert rows[:, 0].tolist() == [97, 38, 98, 1] and rows.dtype == torch.bfloat16
    assert len(encode_text(Echo(), Words(), "", length=16)) == 1


def test_a_prompt_that_is_cut_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(encode_text(Echo(), Words(), "x" * 100, length=16)) == 16
    assert "16 tokens" in caplog.text


def test_what_of_a_long_prompt_is_used_is_told() -> None:
    assert prompt_notes(Words, "x" * 15, 16) == () == prompt_notes(Words, None, 16)
    (note,) = prompt_notes(Words, "a  tall\nperson who talks", 16)
    assert "24 tokens and the model reads 16" in note and '"...a tall person w"' in note
    assert len(encode_text(Echo(), Words(), "a tall person who talks", length=16)) == 16
    with pytest.raises(RequestError):
        prompt_notes(Words, 7, 16)  # type: ignore[arg-type]


def test_a_prompt_that_must_fit_needs_no_tokenizer() -> None:
    def no_tokenizer() -> None:
        raise AssertionError("opened")

    assert prompt_notes(no_tokenizer, "声" * 100, 302) == () == prompt_notes(no_tokenizer, DEFAULT_PROMPT, 8)


@given(st.text())
def test_any_text_is_cleaned(text: str) -> None:
    cleaned = clean_prompt(text)
    assert cleaned == " ".join(cleaned.split())


def test_no_text_is_refused() -> None:
    for wrong in (None, 3, b"bytes", ["a"]):
        with pytest.raises(RequestError):
            clean_prompt(wrong)  # type: ignore[arg-type]
