"""Refusals in the words of a graph: what the command line calls `--kv-dtype`, a node calls kv_dtype."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from ..liveavatar.errors import LiveAvatarError

_WIDGETS = {
    **{
        f"--{name}": name
        for name in ("size", "steps", "stages", "devices", "weights", "lora", "vae", "compile", "attention")
    },
    **{f"--{name}": name.replace("-", "_") for name in ("kv-dtype", "kv-offload", "offload-text-kv", "offload-layers")},
    **{f"--{name}": name.replace("-", "_") for name in ("vram-cap", "host-ram", "allow-smaller", "vae-tiles")},
    **{f"--{name}": name.replace("-", "_") for name in ("text-encoder", "audio-encoder")},
    "--save-state": "Save State",
    "--gpus": "cards",
    "--engine ray": "engine worker processes",
    "--engine local": "engine this process",
}
"""Options of the command line that stand in the library's sentences, and the widgets that do the same."""
_OPTION = re.compile("|".join(f"{re.escape(name)}(?![\\w-])" for name in sorted(_WIDGETS, key=len, reverse=True)))

_FOLLOWED = re.compile(rf"((?:{_OPTION.pattern})(?: (?!--)[^\s;,()]+)?) (?={_OPTION.pattern})")
"""An option, with its value, that another one follows."""


def in_widgets(text: str) -> str:
    """A sentence of the library, with widgets in place of options; commands in backquotes stay as they are."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _translated(part) for part in parts)


@contextlib.contextmanager
def refused_in_widgets() -> Iterator[None]:
    """Inside, refusals name widgets instead of options."""
    try:
        yield
    except LiveAvatarError as error:
        error.what, error.nearest = in_widgets(error.what), in_widgets(error.nearest)
        error.args = (f"{error.what} {error.nearest}".strip(),)
        raise


def _translated(text: str) -> str:
    text = re.sub(r"--model \S+ (?=--)", "", text)  # the graph has its model
    text = _FOLLOWED.sub(r"\1, ", text)
    return _OPTION.sub(lambda found: _WIDGETS[found[0]], text)
