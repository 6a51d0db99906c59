"""Make the embedded talking video from this project's own picture and voice."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import generate

ASSETS = Path(__file__).parents[1] / "mini" / "assets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `demo`."""
    parser.add_argument("--out", default=str(generate.OUTPUT / "demo.mp4"), metavar="FILE.mp4", help="the video")


def run(arguments: argparse.Namespace) -> int:
    """The demo is `generate` with nothing left to choose."""
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    inputs = ["--image", str(ASSETS / "portrait.png"), "--audio", str(ASSETS / "voice.wav")]
    return generate.run(parser.parse_args([*inputs, "--out", arguments.out]))
