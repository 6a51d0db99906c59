"""The tokenizer in a text encoder's file: the tokens are those of sentencepiece and of transformers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from weights.core_files import SENTENCES, as_bytes, sentencepiece_model

from liveavatar.errors import MissingFilesError, ModelError
from liveavatar.weights.formats import SPIECE
from liveavatar.weights.tokenizer import SentencePieceTokenizer, carries_tokenizer, read_tokenizer

MODEL = sentencepiece_model()
VOCABULARY = 384
PROMPTS = [*SENTENCES, "", "x", "zoë: 你好 😀", "</s> <pad> <extra_id_0>", "a " * 200]


def ask(tokenizer, texts, length):
    """As `encode_text` does."""
    return tokenizer(
        texts,
        padding="max_length",
        truncation=True,
        max_length=length,
        add_special_tokens=True,
        return_tensors="pt",
    )


def text_file(path, spiece):
    tensors = {"shared.weight": torch.zeros(4, 4)} | ({} if spiece is None else {SPIECE: spiece})
    save_file(tensors, path / "umt5.safetensors")
    return path / "umt5.safetensors"


def test_tokens_are_those_of_transformers(tmp_path):
    from transformers import T5Tokenizer

    (tmp_path / "spiece.model").write_bytes(MODEL)
    theirs = T5Tokenizer.from_pretrained(tmp_path, local_files_only=True, extra_ids=0)
    ours = read_tokenizer(text_file(tmp_path, as_bytes(MODEL)), VOCABULARY)
    plain = [prompt for prompt in PROMPTS if "<" not in prompt]
    for length in (64, 8):
        wanted, found = ask(theirs, plain, length), ask(ours, plain, length)
        for part in ("input_ids", "attention_mask"):
            assert torch.equal(found[part], wanted[part]), part
            assert found[part].dtype == wanted[part].dtype


@given(text=st.text(max_size=60), length=st.integers(1, 40))
def test_any_text_is_tokens_the_end_mark_and_padding(text, length):
    found = ask(SentencePieceTokenizer(MODEL, VOCABULARY, "memory"), [text], length)
    ids, mask = found["input_ids"][0], found["attention_mask"][0]
    count = int(mask.sum())
    assert ids.shape == mask.shape == (length,)
    assert 1 <= count <= length
    assert mask[:count].all() and not ids[count:].any()
    assert ids[count - 1] == 1 and ids.max() < VOCABULARY


def test_tokens_become_text_again():
    tokenizer = SentencePieceTokenizer(MODEL, VOCABULARY, "memory")
    ids = ask(tokenizer, ["a person talks"], 40)["input_ids"][0]
    assert tokenizer.decode(ids) == "a person talks" and tokenizer.decode(ids[:3]) in "a person talks"


def test_other_uses_are_no_silent_surprise():
    tokenizer = SentencePieceTokenizer(MODEL, VOCABULARY, "memory")
    with pytest.raises(TypeError):
        tokenizer(["a"], max_length=8, padding="longest")
    with pytest.raises(TypeError):
        tokenizer.decode([3], skip_special_tokens=False)


@pytest.mark.parametrize("spiece", [torch.zeros(9), torch.zeros(0, dtype=torch.uint8), torch.zeros(2, 2).byte()])
def test_damage_that_shows_in_the_header_is_found_there(tmp_path, spiece):
    with pytest.raises(ModelError, match=r"tokenizer in .*umt5\.safetensors is damaged"):
        carries_tokenizer(text_file(tmp_path, spiece))


@pytest.mark.parametrize("spiece", [b"hello, I am no tokenizer", MODEL[:500], b"\x00"])
def test_damaged_bytes_are_refused(tmp_path, spiece):
    path = text_file(tmp_path, as_bytes(spiece))
    assert carries_tokenizer(path)
    with pytest.raises(ModelError, match=r"umt5\.safetensors") as refusal:
        read_tokenizer(path, VOCABULARY)
    assert "google/umt5-xxl" in refusal.value.nearest


@pytest.mark.parametrize(
    ("model", "vocabulary"), [(MODEL, 59), (sentencepiece_model(end=3), VOCABULARY)], ids=["too large", "another end"]
)
def test_the_tokenizer_of_another_encoder_is_refused(model, vocabulary):
    with pytest.raises(ModelError, match="belongs to another text encoder"):
        SentencePieceTokenizer(model, vocabulary, "memory")


def test_a_file_without_one_says_so(tmp_path):
    path = text_file(tmp_path, None)
    assert not carries_tokenizer(path)
    assert not carries_tokenizer(tmp_path)
    with pytest.raises(MissingFilesError, match=SPIECE):
        read_tokenizer(path, VOCABULARY)
