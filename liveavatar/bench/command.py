"""Measure what the machinery delivers."""

from __future__ import annotations

import argparse

from . import command_frames, command_live, command_model, command_network, command_pipeline, command_suite

BENCHES = {
    "frames": command_frames,
    "live": command_live,
    "pipeline": command_pipeline,
    "model": command_model,
    "network": command_network,
    "suite": command_suite,
}
"""Like commands: each adds its options and runs."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A command per measurement."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="COMMAND")
    for name, module in BENCHES.items():
        summary = (module.__doc__ or "").strip().splitlines()[0]
        module.add_arguments(benches.add_parser(name, help=summary, description=summary))


def run(arguments: argparse.Namespace) -> int:
    """Measure; returns the exit code."""
    code: int = BENCHES[arguments.bench].run(arguments)
    return code
