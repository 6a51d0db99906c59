"""The tokenizer that is put together from a GGUF file's vocabulary gives the tokens of the model it came from."""

import numpy as np
import pytest
import torch
from sentencepiece import SentencePieceProcessor
from weights.core_files import SENTENCES, sentencepiece_model
from weights.gguf_files import write_gguf

from liveavatar.errors import ModelError
from liveavatar.weights.gguf import GGUFSource
from liveavatar.weights.tokenizer import SentencePieceTokenizer, carries_tokenizer, read_tokenizer

MODEL = sentencepiece_model()
PROMPTS = [*SENTENCES, "", "x", "zoë: 你好 😀", "  two   spaces ", "ﬁne ①", "a " * 200]
LARGE = 256_384


def entries(model=MODEL):
    """What llama.cpp's converter writes of a sentencepiece model."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [piece.piece.encode() for piece in proto.pieces],
        "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in proto.pieces],
        "tokenizer.ggml.precompiled_charsmap": list(proto.normalizer_spec.precompiled_charsmap),
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 2,
    }


def written(path, **changed):
    tensors = {"enc.blk.0.attn_q.weight": np.ones((2, 32), np.float32)}
    write_gguf(path / "umt5.gguf", tensors, "F32", "t5encoder", {**entries(), **changed})
    return path / "umt5.gguf"


def test_tokens_are_those_of_the_model(tmp_path):
    path = written(tmp_path)
    assert carries_tokenizer(path)
    ours, theirs = read_tokenizer(path, LARGE), SentencePieceTokenizer(MODEL, LARGE, "memory")
    for prompt in PROMPTS:
        found, wanted = (t([prompt], max_length=64)["input_ids"] for t in (ours, theirs))
        assert torch.equal(found, wanted), prompt


def test_pieces_that_stand_for_bytes_are_used_where_all_are_there(tmp_path):
    said = entries()
    said["tokenizer.ggml.tokens"] += [f"<0x{byte:02X}>".encode() for byte in range(256)]
    said["tokenizer.ggml.scores"] += [-20.0] * 256
    said["tokenizer.ggml.token_type"] += [6] * 256
    tokenizer = read_tokenizer(written(tmp_path, **said), LARGE)
    found = tokenizer(["你"], max_length=16)["input_ids"][0].tolist()
    count = len(SentencePieceProcessor(model_proto=MODEL))
    assert [count + byte for byte in "你".encode()] == [token for token in found if token >= count]


@pytest.mark.parametrize(
    "changed",
    [
        {"tokenizer.ggml.scores": [1.0, 2.0]},
        {"tokenizer.ggml.token_type": "no list"},
        {"tokenizer.ggml.tokens": [1, 2, 3]},
        {"tokenizer.ggml.eos_token_id": "no number"},
    ],
    ids=str,
)
def test_a_damaged_vocabulary_is_refused(tmp_path, changed):
    with pytest.raises(ModelError, match="The tokenizer in"):
        read_tokenizer(written(tmp_path, **changed), LARGE)


def test_a_file_without_a_vocabulary_carries_none(tmp_path):
    path = written(tmp_path, **{"tokenizer.ggml.model": "gpt2"})
    assert not carries_tokenizer(path)


def test_a_large_vocabulary_is_looked_over_without_being_read(tmp_path):
    """The look at a header makes no object of a word; the package's own reader makes several of each."""
    import tracemalloc

    count = 50_000
    words = {
        "tokenizer.ggml.tokens": [f"▁{i}".encode() for i in range(count)],
        "tokenizer.ggml.scores": [0.0] * count,
        "tokenizer.ggml.token_type": [1] * count,
    }
    path = written(tmp_path, **words)
    tracemalloc.start()
    GGUFSource(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
