"""The small text encoder: what it learns from, and that it is read back as it was trained."""

import re

import pytest
import torch
from transformers import AutoTokenizer, UMT5EncoderModel

from liveavatar.encoders.text import encode_text
from liveavatar.errors import MissingFilesError
from liveavatar.mini.training import phrases, words
from liveavatar.mini.training.recipe import Recipe
from liveavatar.mini.training.tokens import END, make_tokenizer, open_tokenizer
from liveavatar.mini.world.appearance import MOODS

RECIPE = Recipe(text_dim=32, text_len=24, vocabulary=400, words_steps=2)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(words, "_CORPUS", 300)
    patch.setattr(words, "_BATCH", 4)
    folder = tmp_path_factory.mktemp("work")
    words.train_words(RECIPE, folder, None, lambda line: None)
    patch.undo()
    return folder


def test_phrases_say_what_they_ask_for():
    for i in range(400):
        prompt = phrases.phrase((1, i))
        walls = {prompt.background, *(o for o, w in phrases.OTHER_NAMES.items() if w == prompt.background)}
        assert prompt.background is None or any(w in prompt.text for w in walls)
        feelings = (*MOODS.get(prompt.mood, ()), *phrases.OTHER_MOODS.get(prompt.mood, ()))
        assert prompt.mood is None or any(all(word in prompt.text.lower() for word in f.split()) for f in feelings)


def test_held_out_phrasings_are_never_learned_from():
    learned = " ".join(phrases.phrase((1, i)).text for i in range(500)).lower()
    for phrasing in phrases.HELD_OUT:
        assert not all(part in learned for part in re.split(r"\{\w+\}", phrasing.lower()))


def test_any_text_can_be_read_and_ends_with_its_mark():
    tokenizer = open_tokenizer(make_tokenizer(["a green wall", "a blue wall"], 300))
    ids = tokenizer("A GREEN wall, Ünïcode Смайл 😀")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == END
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a green wall, ünïcode смайл 😀"


def test_the_exported_reader_is_the_trained_one(work, tmp_path):
    nbytes = words.export_words(RECIPE, work, tmp_path)
    assert nbytes < 200_000
    model = UMT5EncoderModel.from_pretrained(
        tmp_path / "text_encoder", attn_implementation="eager", dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    reader, own = words.trained_reader(RECIPE, work)
    got = encode_text(model, tokenizer, "A happy person, teal background.", RECIPE.text_len)
    expected = encode_text(reader.encoder, own, "A happy person, teal background.", RECIPE.text_len)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=0.1)


def test_a_finished_training_is_not_done_again(work):
    before = (work / words.TOKENIZER).read_bytes(), words.load_checkpoint(work / words.CHECKPOINT)
    words.train_words(RECIPE, work, None, lambda line: None)
    after = (work / words.TOKENIZER).read_bytes(), words.load_checkpoint(work / words.CHECKPOINT)
    assert before[0] == after[0]
    assert all(torch.equal(v, after[1][k]) for k, v in before[1].items())


def test_nothing_trained_is_said(tmp_path):
    with pytest.raises(MissingFilesError, match="words"):
        words.export_words(RECIPE, tmp_path, tmp_path)
