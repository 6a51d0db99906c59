"""Hashes of the frames of ten small videos: `python -m tools.record_frames [--json FILE | --check FILE]`.

Frames must not change when code is only moved or renamed. The hashes depend on the processor and on the versions of the
libraries, so compare them on one machine, before and after a change; they are no assets of the project.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from liveavatar.cli import main as liveavatar

ASSETS = Path(__file__).parents[1] / "liveavatar" / "mini" / "assets"
REQUESTS = {
    "untrained, one stage": "--model untrained --seconds 2.5",
    "untrained, 1x2, 3 steps": "--model untrained --seconds 2.5 --stages 1x2 --steps 3",
    "untrained, 2x2": "--model untrained --seconds 2.5 --stages 2x2",
    "untrained, 4x1": "--model untrained --seconds 2.5 --stages 4x1",
    "untrained, 5 steps, 192x128": "--model untrained --seconds 1.5 --steps 5 --size 192x128",
    "untrained, KV cache on the host, layers streamed": (
        "--model untrained --seconds 2.5 --keys-home host --prompt-weights leave --stream 3"
    ),
    "untrained, worker processes, 2x1": "--model untrained --seconds 2.5 --stages 2x1 --engine ray",
    "mini, one stage": "--model mini --seconds 1.5 --seed 7",
    "mini, fp8 weights and KV cache": "--model mini --seconds 1.5 --weights fp8 --keys fp8",
    "mini, VAE in tiles, 192x192": "--model mini --seconds 1 --size 192x192 --vae-tiles 2x2",
}
"""Options of `generate`, as users type them: they outlive every name in the code."""


def frames_sha256(options: str, folder: Path) -> str:
    """The hash of one video's raw frames, from its receipt.

    Raises:
        RuntimeError: the command did not complete.
    """
    video = folder / "video.mp4"
    given = ["--image", str(ASSETS / "portrait.png"), "--audio", str(ASSETS / "voice.wav"), "--out", str(video)]
    code = liveavatar(["generate", *given, "--quiet", "--threads", "1", "--devices", "cpu", *options.split()])
    if code:
        raise RuntimeError(f"`generate {options}` ended with exit code {code}.")
    return str(json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))["frames_sha256"])


def main() -> int:
    """Print a hash per request; with --check, 1 where any differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the hashes")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with hashes that were written before")
    arguments = parser.parse_args()
    expected = json.loads(arguments.check.read_text(encoding="utf-8")) if arguments.check else {}
    found: dict[str, str] = {}
    for name, options in REQUESTS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = frames_sha256(options, Path(folder))
        verdict = "" if not arguments.check else "  same" if expected.get(name) == found[name] else "  DIFFERENT"
        print(f"{found[name]}  {name}{verdict}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(bool(arguments.check) and found != expected)


if __name__ == "__main__":
    sys.exit(main())
