"""The prompt as the network reads it: rows of UMT5."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import RequestError
from ..request import DEFAULT_PROMPT

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_EXTRA_TOKENS = 2
"""The end mark, and the space that sentencepiece puts in front."""
_QUOTED_LETTERS = 60


def clean_prompt(text: str) -> str:
    """Repair broken characters (ftfy), undo HTML escapes twice, collapse all white space to single spaces.

    The cleaning the network was trained with.

    Raises:
        RequestError: not a text.
    """
    import ftfy

    if not isinstance(text, str):
        raise RequestError(f"The prompt is of type {type(text).__name__}.", "Give a text; an empty one is allowed.")
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text)))).strip()


def prompt_notes(open_tokenizer: Callable[[], Any], prompt: str | None, length: int) -> tuple[str, ...]:
    """What is to be told of a prompt that the network does not read to its end.

    Args:
        open_tokenizer: called only for a prompt that may be too long: no token is less than a byte of UTF-8.
        prompt: None, where it is not known.
        length: tokens the network reads, the end mark included.

    Raises:
        RequestError: not a text.
    """
    if prompt in (None, DEFAULT_PROMPT) or len(text := clean_prompt(prompt).encode()) + _EXTRA_TOKENS <= length:
        return ()  # the common cases need no tokenizer
    tokenizer = open_tokenizer()
    most = len(text) + _EXTRA_TOKENS
    tokens = tokenizer(
        [text.decode()],
        padding="max_length",
        truncation=True,
        max_length=most,
        add_special_tokens=True,
        return_tensors="pt",
    )
    count = int(tokens["attention_mask"].sum())
    if count <= length:
        return ()
    used = tokenizer.decode(tokens["input_ids"][0, : length - 1], skip_special_tokens=True).strip()
    return (
        f"the prompt has {count} tokens and the model reads {length}: it is used up to "
        f'"...{used[-_QUOTED_LETTERS:].strip()}", and the rest has no effect',
    )


def encode_text(model: Any, tokenizer: Any, prompt: str, length: int = 512) -> torch.Tensor:
    """Clean, tokenise and encode a prompt.

    Args:
        model: `UMT5EncoderModel`, ours or that of transformers (of which, in bfloat16, only the "eager" attention
            repeats the published numbers).
        tokenizer: a Hugging Face tokenizer of the model.
        length: tokens the prompt is padded or cut to before encoding, as in training.

    Returns:
        One row per real token, the end mark included: [n, d] with 1 <= n <= length, in the model's dtype and on its
        device. A prompt that fills all rows may have been cut; that is logged.

    Raises:
        RequestError: not a text.
    """
    tokens = tokenizer(
        [clean_prompt(prompt)],
        padding="max_length",
        truncation=True,
        max_length=length,
        add_special_tokens=True,
        return_tensors="pt",
    )
    rows = encode_tokens(model, tokens["input_ids"], tokens["attention_mask"])[0]
    if len(rows) == length:
        log.warning("The prompt fills all %d tokens the network reads; words beyond them are ignored.", length)
    return rows


def encode_tokens(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Encode padded token ids.

    Args:
        ids, mask: integers [b, length]; the mask is 1 for real tokens, which come first.

    Returns:
        Per prompt the rows of its real tokens, [n, d], in the model's dtype and on its device.
    """
    import torch

    device = next(model.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    with torch.inference_mode():
        rows = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return [row[:n] for row, n in zip(rows, mask.sum(dim=1).tolist(), strict=True)]
