"""The small text encoder: a tokenizer and a UMT5 that learns to say what a prompt wants to be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import MissingFilesError
from ..world.appearance import Prompt
from .loop import load_checkpoint, train_steps
from .parts import write_part
from .phrases import BACKGROUND_CLASSES, MOOD_CLASSES, held_out, phrase
from .tokens import make_tokenizer, open_tokenizer, write_tokenizer

if TYPE_CHECKING:
    from .recipe import Recipe

CHECKPOINT, TOKENIZER = "words.pt", "words_tokenizer.json"
"""Names in the folder of the work."""
_CORPUS = 20_000
"""Prompts the tokenizer learns its pieces from."""
_BATCH = 64
_CLASSES = (len(BACKGROUND_CLASSES), len(MOOD_CLASSES))


@dataclasses.dataclass(frozen=True)
class Reading:
    """How often the reader is right, 0 to 1.

    Attributes:
        pooled: both wishes, from the mean of all rows.
        rows: both wishes, per row.
        unseen: as pooled, in phrasings it never learned from.
        unseen_rows: as rows, in those.
    """

    pooled: float
    rows: float
    unseen: float
    unseen_rows: float


class Reader(nn.Module):
    """UMT5 with a head that reads wall and mood off any of its rows.

    Attributes:
        encoder: `transformers.UMT5EncoderModel`; all that is kept after training.
    """

    def __init__(self, recipe: Recipe, vocabulary: int):
        super().__init__()
        from transformers import UMT5Config, UMT5EncoderModel

        config = UMT5Config(**umt5_settings(recipe, vocabulary))
        config._attn_implementation = "eager"
        self.encoder: Any = UMT5EncoderModel(config)
        self.head = nn.Linear(recipe.text_dim, sum(_CLASSES))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits from the mean row [b, classes] and from each row [b, n, classes], padding included."""
        rows = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        real = mask[:, :, None].to(rows.dtype)
        return self.head((rows * real).sum(1) / real.sum(1)), self.head(rows)


def umt5_settings(recipe: Recipe, vocabulary: int) -> dict[str, Any]:
    """Arguments of `transformers.UMT5Config`."""
    return {
        "vocab_size": vocabulary,
        "d_model": recipe.text_dim,
        "d_kv": 16,
        "d_ff": 2 * recipe.text_dim,
        "num_heads": recipe.text_dim // 16,
        "num_layers": recipe.text_layers,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def train_words(recipe: Recipe, work: Path, minutes: float | None, log: Callable[[str], None]) -> None:
    """Make the tokenizer and train the encoder, or go on with it.

    Args:
        work: folder of checkpoints; `words.pt` and `words_tokenizer.json` are this part's.
        minutes: ends early after so many; another call goes on.
        log: called with lines about the progress and, at the end, how well it reads.
    """
    tokenizer = open_tokenizer(_tokenizer_content(recipe, work))
    torch.manual_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reader = Reader(recipe, len(tokenizer)).to(device)

    def loss_of(step: int) -> torch.Tensor:
        # Longer than the network reads: what is cut off cannot be asked for, but that is not the reader's to learn.
        prompts = [phrase((recipe.seed, step, i)) for i in range(_BATCH)]
        return _loss(reader, *_tokens(tokenizer, prompts, 2 * recipe.text_len, device))

    done = train_steps(
        work / CHECKPOINT,
        reader,
        loss_of,
        steps=recipe.words_steps,
        rate=recipe.words_rate,
        minutes=minutes,
        log=log,
    )
    if done:
        log(f"words: {measure(reader, tokenizer, recipe)}")


def export_words(recipe: Recipe, work: Path, folder: Path) -> int:
    """Write `text_encoder` and `tokenizer` into a model folder.

    Returns:
        Bytes of the weights.

    Raises:
        MissingFilesError: nothing was trained yet.
    """
    reader, _ = trained_reader(recipe, work)
    vocabulary = reader.encoder.config.vocab_size
    write_tokenizer(folder / "tokenizer", (work / TOKENIZER).read_text(encoding="utf-8"), recipe.text_len)
    settings = {"model_type": "umt5", **umt5_settings(recipe, vocabulary)}
    return write_part(folder / "text_encoder", reader.encoder, settings, "UMT5EncoderModel")


def trained_reader(recipe: Recipe, work: Path) -> tuple[Reader, Any]:
    """The reader of a checkpoint on the CPU in evaluation mode, and its tokenizer.

    Raises:
        MissingFilesError: nothing was trained yet.
    """
    weights = load_checkpoint(work / CHECKPOINT)
    if weights is None or not (work / TOKENIZER).is_file():
        raise MissingFilesError(f"{work} holds no trained text encoder.", "Run the stage words first.")
    tokenizer = open_tokenizer((work / TOKENIZER).read_text(encoding="utf-8"))
    reader = Reader(recipe, len(tokenizer))
    reader.load_state_dict(weights)
    return reader.eval(), tokenizer


@torch.inference_mode()
def measure(reader: Reader, tokenizer: Any, recipe: Recipe, prompts: int = 1000) -> Reading:
    """How well prompts are read that were not learned from: other seeds, then other phrasings."""
    figures: list[float] = []
    device = next(reader.parameters()).device
    for make in (phrase, held_out):
        some = [make((recipe.seed, -1 % (1 << 32), i)) for i in range(prompts)]
        ids, mask, wishes = _tokens(tokenizer, some, recipe.text_len, device)
        pooled, rows = reader(ids, mask)
        figures.append(_right(pooled, wishes).float().mean().item())
        figures.append(_right(rows, wishes[:, None])[mask.bool()].float().mean().item())
    return Reading(*figures)


def _tokenizer_content(recipe: Recipe, work: Path) -> str:
    path = work / TOKENIZER
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        texts = (phrase((recipe.seed, 1 << 31, i)).text for i in range(_CORPUS))
        path.write_text(make_tokenizer(texts, recipe.vocabulary), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _tokens(
    tokenizer: Any, prompts: Sequence[Prompt], length: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and mask, padded to the longest prompt, and the classes asked for [b, 2]."""
    tokens = tokenizer([p.text for p in prompts], padding=True, truncation=True, max_length=length, return_tensors="pt")
    wishes = [[BACKGROUND_CLASSES.index(p.background), MOOD_CLASSES.index(p.mood)] for p in prompts]
    return tokens["input_ids"].to(device), tokens["attention_mask"].to(device), torch.tensor(wishes, device=device)


def _loss(reader: Reader, ids: torch.Tensor, mask: torch.Tensor, wishes: torch.Tensor) -> torch.Tensor:
    """Cross entropy of both wishes, from the mean row and from every real row."""
    pooled, rows = reader(ids, mask)
    real = mask.bool()
    loss = torch.zeros((), device=ids.device)
    for k, (whole, each) in enumerate(zip(pooled.split(_CLASSES, -1), rows.split(_CLASSES, -1), strict=True)):
        wish = wishes[:, k]
        loss = loss + F.cross_entropy(whole, wish) + F.cross_entropy(each[real], wish[:, None].expand_as(mask)[real])
    return loss


def _right(logits: torch.Tensor, wishes: torch.Tensor) -> torch.Tensor:
    """Whether both wishes are read: logits [..., classes], wishes [..., 2] -> [...]"""
    picked = torch.stack([part.argmax(-1) for part in logits.split(_CLASSES, -1)], -1)
    return (picked == wishes).all(-1)
