"""The small tokenizer: pieces of lower-case text over bytes, so that no text is unreadable."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
"""Tokens 0, 1 and 2. Unknown never occurs, but readers of tokenizers ask for one."""


def make_tokenizer(texts: Iterable[str], size: int) -> str:
    """Learn byte pairs from texts; the same texts give the same tokenizer.

    Args:
        size: entries of the vocabulary at most, more than 259 (all bytes and the three special ones).

    Returns:
        What tokenizer.json holds.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer: Any = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # Every word starts with a space, so that it is the same word at the start of a text.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[PAD, END, UNKNOWN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, 1)]
    )
    return str(tokenizer.to_str())


def open_tokenizer(content: str) -> PreTrainedTokenizerFast:
    """A tokenizer to use from what `make_tokenizer` returned."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(content), pad_token=PAD, eos_token=END, unk_token=UNKNOWN
    )


def write_tokenizer(folder: Path, content: str, length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them.

    Args:
        length: tokens the network reads at most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compact = json.dumps(json.loads(content), ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
