"""Tokenizers of the prompt: the tokenizer.json of a folder, or the sentencepiece model in a text encoder's file.

A GGUF file has the model's pieces alone, of which it is put together again (see gguf_vocabulary.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ModelError
from .gguf import GGUFSource
from .gguf_vocabulary import carries_vocabulary, sentencepiece_model
from .header import read_settings, reason
from .quantised import SPIECE
from .source import GGUF, SafetensorsSource

if TYPE_CHECKING:
    import torch

_PAD, _END = 0, 1
"""Tokens of the whole T5 family."""
_NEAREST = "Download the text encoder again, or give the tokenizer folder google/umt5-xxl of Wan-AI/Wan2.2-S2V-14B."


_FETCH_FOLDER = "Fetch the published folder again."


class _Tokenizer:
    """Text to tokens, called as tokenizers of transformers are, for the one use this library has."""

    _pad_id = _PAD

    def __call__(
        self,
        texts: Sequence[str],
        *,
        max_length: int,
        padding: str = "max_length",
        truncation: bool = True,
        add_special_tokens: bool = True,
        return_tensors: str = "pt",
    ) -> dict[str, torch.Tensor]:
        """Texts -> "input_ids" and "attention_mask", int64 [texts, max_length]; what is too long loses its end."""
        if (padding, truncation, add_special_tokens, return_tensors) != ("max_length", True, True, "pt"):
            raise TypeError("this tokenizer only makes padded and truncated tensors with the end mark")
        import torch

        ids = torch.full((len(texts), max_length), self._pad_id)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            tokens = self._tokens(text, max_length)
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _tokens(self, text: str, most: int) -> list[int]:
        """At most so many tokens, the end mark last."""
        raise NotImplementedError


class JsonTokenizer(_Tokenizer):
    """Text to tokens by a folder's `tokenizer.json`.

    Args:
        folder: of the tokenizer; its `tokenizer_config.json` names the padding.

    Raises:
        ModelError: damaged, or without padding.
    """

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        settings = read_settings(folder / "tokenizer_config.json")
        named = settings.get("pad_token")
        pad = str(named.get("content") if isinstance(named, dict) else named)
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            pad_id = self._tokenizer.token_to_id(pad)
        except Exception as e:  # what damaged files make its parser raise has no common base
            raise ModelError(f"The tokenizer in {folder} is damaged ({reason(e)}).", _FETCH_FOLDER) from e
        if pad_id is None:
            raise ModelError(f"The tokenizer in {folder} has no token {pad!r:.40} to pad with.", _FETCH_FOLDER)
        self._pad_id = pad_id
        self._tokenizer.no_padding()

    def _tokens(self, text: str, most: int) -> list[int]:
        self._tokenizer.enable_truncation(most)
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text that tokens stand for."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))


class SentencePieceTokenizer(_Tokenizer):
    """Text to tokens as the model was trained: sentencepiece, then the end mark; a text holds no special words.

    Args:
        model: a serialised sentencepiece model.
        vocabulary: rows of the text encoder's embedding.
        origin: where the model comes from, for messages.

    Raises:
        ModelError: no sentencepiece model, or one of another text encoder.
    """

    def __init__(self, model: bytes, vocabulary: int, origin: str):
        from sentencepiece import SentencePieceProcessor

        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except Exception as e:  # what damaged bytes make its parser raise has no common base
            raise ModelError(f"The tokenizer in {origin} is damaged.", _NEAREST) from e
        count, end = self._pieces.get_piece_size(), self._pieces.eos_id()
        if not 0 < count <= vocabulary or end != _END:
            raise ModelError(
                f"The tokenizer in {origin} belongs to another text encoder: it has {count} pieces and the end mark "
                f"{end}, where this one has {vocabulary} and {_END}.",
                _NEAREST,
            )

    def _tokens(self, text: str, most: int) -> list[int]:
        return [*self._pieces.encode(text)[: most - 1], _END]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text that tokens stand for, without padding and end mark."""
        if not skip_special_tokens:
            raise TypeError("this tokenizer leaves special tokens out")
        return str(self._pieces.decode([int(i) for i in ids if i not in (_PAD, _END)]))


def carries_tokenizer(path: Path) -> bool:
    """Whether a text encoder's file holds a tokenizer too; a look at its header.

    Raises:
        ModelError: it is cut off, or what it holds under that name are no bytes.
    """
    if path.suffix == GGUF and path.is_file():
        return carries_vocabulary(GGUFSource(path))
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    source = SafetensorsSource(path)
    if SPIECE not in source.keys():  # noqa: SIM118 (not a mapping)
        return False
    if source.dtype(SPIECE) != "U8" or len(source.shape(SPIECE)) != 1 or not source.shape(SPIECE)[0]:
        raise ModelError(f"The tokenizer in {path} is damaged.", _NEAREST)
    return True


def read_tokenizer(path: Path, vocabulary: int) -> SentencePieceTokenizer:
    """The tokenizer in a text encoder's file.

    Raises:
        MissingFilesError: it holds none.
        ModelError: damaged, or of another text encoder.
    """
    if path.suffix == GGUF:
        model = sentencepiece_model(GGUFSource(path))
    else:
        model = SafetensorsSource(path).read(SPIECE).numpy().tobytes()
    return SentencePieceTokenizer(model, vocabulary, str(path))
