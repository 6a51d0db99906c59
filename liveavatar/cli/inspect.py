"""Say what a model folder holds, what is missing, and the command that would fetch it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `inspect`."""
    parser.add_argument("path", metavar="DIR", help="a model folder, or one safetensors file")


def run(arguments: argparse.Namespace) -> int:
    """Inspect; 0 when nothing is missing, 1 when something is."""
    if arguments.path in PRESETS and not Path(arguments.path).exists():
        from ..components import open_components

        print(open_components(arguments.path).describe())
        return 0
    from ..weights.folder import format_inspection, inspect_model

    inspection = inspect_model(arguments.path)
    print(format_inspection(inspection))
    return 0 if inspection.complete else 1
