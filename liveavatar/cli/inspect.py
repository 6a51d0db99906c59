"""Say what a model folder holds, what is missing, and the command that would fetch it."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `inspect`."""
    parser.add_argument("path", metavar="DIR", help="a model folder, or one safetensors file")


def run(arguments: argparse.Namespace) -> int:
    """Inspect; 0 when nothing is missing, 1 when something is."""
    from ..weights.folder import format_inspection, inspect_model

    inspection = inspect_model(arguments.path)
    print(format_inspection(inspection))
    return 0 if inspection.complete else 1
