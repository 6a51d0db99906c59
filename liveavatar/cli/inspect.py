"""Say what a model holds, whether its parts fit together, what is missing, and the command that would fetch it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import PRESETS
from ..errors import LiveAvatarError
from .options import add_part_arguments, parts_of
from .tables import note_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `inspect`."""
    parser.add_argument("path", metavar="DIR", help="a model folder, or one safetensors file")
    add_part_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Inspect; 0 where `generate` would take the model, 1 where it would refuse it."""
    from ..components import notes_of, open_components
    from ..weights.folder import format_inspection, inspect_model
    from ..weights.source import opening_files_once

    parts = parts_of(arguments)
    if arguments.path in PRESETS and not Path(arguments.path).exists():
        print(open_components(arguments.path, **parts).describe())
        return 0
    with opening_files_once():
        inspection = inspect_model(arguments.path, **parts)
        refusal: LiveAvatarError | None = None
        notes: tuple[str, ...] = ()
        try:
            if inspection.complete:
                notes = notes_of(open_components(arguments.path, **parts))
        except LiveAvatarError as error:
            refusal = error
    print("\n".join([format_inspection(inspection, refusal), *note_lines(notes)]))
    return 0 if inspection.complete and not refusal else 1
