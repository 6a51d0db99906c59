"""Judge the miniature: `python -m liveavatar.mini.evaluate [--model DIR] [--people N] [--long SECONDS] [--sheet PNG]`,
or with two people in a picture: `--pairs N [--pair-sheet PNG]`.

People, voices and languages are held out. Lips, faces, walls and moods are read from pixels. What the judge relies on
is also taken with something done wrong (no LoRA, no sink, the sound of somebody else), to see that it can fail.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import get_args

from ..components import FolderComponents, open_components
from ..errors import LiveAvatarError, ModelError, OutputError
from ..files import write_file
from ..session import cpu_threads
from ..storage import KVDtype, WeightFormat
from .exam import Exam, Log
from .figures import passes
from .judge import FAULTS, ExamEngine
from .pair_exam import PairExam, pair_sheet
from .sheet import Row, contact_sheet
from .showing import SHORTEST_LONG_RUN, endurance, people_sheet


def main() -> int:
    """Print the figures as JSON, and draw the sheets that were asked for."""
    arguments = _arguments()
    try:
        with cpu_threads(arguments.threads):
            _run(arguments)
    except LiveAvatarError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    for path in (arguments.out, arguments.sheet, arguments.long_sheet, arguments.pair_sheet):
        _check_place(path)
    components = open_components(arguments.model, vae=arguments.vae)
    if not isinstance(components, FolderComponents):
        raise ModelError("The untrained miniature cannot be judged.", "Give a trained model's folder.")
    engine = ExamEngine(components, arguments.threads, arguments.weights, arguments.kv_dtype)
    log = _clocked()
    exam, pairs = Exam(engine, arguments.people, log=log), PairExam(engine, arguments.pairs or 1, log=log)
    text = json.dumps(_judge_pairs(pairs, arguments) if arguments.pairs else _judge(exam, arguments), indent=2)
    print(text, flush=True)
    if arguments.out:
        write_file(arguments.out, f"{text}\n".encode(), "The report")
    if arguments.sheet:
        _save(people_sheet(exam, arguments.sheet_people, arguments.with_truth), arguments.sheet)
    if arguments.pair_sheet:
        _save(pair_sheet(pairs, arguments.sheet_pairs), arguments.pair_sheet)


def _judge_pairs(exam: PairExam, arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    """The figures of two people in a picture."""
    figures: dict[str, dict[str, object]] = {"run": _run_of(arguments) | {"pairs": arguments.pairs}}
    figures["pairs"] = exam.talking() | exam.listening()
    return figures | {"passes": {name: t for name, t in passes(figures).items() if t["measured"] is not None}}


def _run_of(arguments: argparse.Namespace) -> dict[str, object]:
    return {name: getattr(arguments, name) for name in ("model", "vae", "weights", "kv_dtype", "threads")}


def _judge(exam: Exam, arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    """All figures that were asked for; the long sheet is saved on the way, because it shows the same long run."""
    figures: dict[str, dict[str, object]] = {"run": _run_of(arguments)}
    if not arguments.sheet_only:
        figures["run"] |= {"people": arguments.people, "tries": arguments.tries}
        figures |= {"speed": exam.speed(), "talking": exam.talking(), "identity": exam.identity()}
        figures["faults"] = {fault: exam.fault(fault) for fault in FAULTS if fault}
        figures |= {"silence": exam.silence(), "obedience": exam.obedience(arguments.tries)}
    if arguments.long:
        figures["endurance"], rows = endurance(exam, arguments.long, arguments.long_people, arguments.with_truth)
        if arguments.long_sheet:
            _save(rows, arguments.long_sheet)
    return figures | {"passes": dict(passes(figures))}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m liveavatar.mini.evaluate", description=__doc__)
    add = parser.add_argument
    add("--model", default="mini")
    add("--vae", metavar="tiny|full|FILE", help="what decodes (default: what the model does)")
    add("--weights", choices=get_args(WeightFormat), default="plain", help="how the large matrices are kept")
    add("--kv-dtype", choices=get_args(KVDtype), default="plain", help="how keys and values of earlier blocks are kept")
    add("--people", type=_count, default=8, help="held-out people whose lips and likeness are judged")
    add("--tries", type=_count, default=24, help="prompts that ask for a wall and a mood")
    add("--threads", type=_count, default=2, help="CPU threads; the targets of speed are meant for 2")
    add("--long", type=float, metavar="SECONDS", help="also judge the likeness at the end of so long a video")
    add("--long-people", type=_count, default=1, metavar="N", help="people who talk for so long")
    add("--out", type=Path, help="write the figures here too")
    add("--sheet", type=Path, metavar="PNG", help="draw people over eight seconds")
    add("--sheet-people", type=_count, default=6, metavar="N")
    add("--long-sheet", type=Path, metavar="PNG", help="draw the first person of the long run")
    add("--pairs", type=_count, metavar="N", help="judge so many pairs of people in one picture, and nothing else")
    add("--pair-sheet", type=Path, metavar="PNG", help="draw pairs who talk in turns")
    add("--sheet-pairs", type=_count, default=3, metavar="N")
    add("--with-truth", action="store_true", help="under what was made, draw what should have been")
    add("--sheet-only", action="store_true", help="draw the sheets and judge only what they need")
    arguments = parser.parse_args()
    if arguments.long is not None and not arguments.long >= SHORTEST_LONG_RUN:
        parser.error(f"--long {arguments.long:g} is too short to be judged; give at least {SHORTEST_LONG_RUN:g}")
    if arguments.long_sheet and not arguments.long:
        parser.error("--long-sheet shows the long run: add --long 600")
    if arguments.sheet_only and not (arguments.sheet or arguments.long_sheet or arguments.pair_sheet):
        parser.error("--sheet-only draws nothing without --sheet PNG, --long-sheet PNG or --pair-sheet PNG")
    return arguments


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _check_place(path: Path | None) -> None:
    """Minutes of work should not end at a folder that is not there."""
    if path and not path.absolute().parent.is_dir():
        raise OutputError(f"There is no folder {path.parent} for {path.name}.", "Make it first, or choose another.")
    if path and path.is_dir():
        raise OutputError(f"{path} is a folder.", f"Name a file in it, such as {path / 'mini'}.")


def _save(rows: list[Row], path: Path) -> None:
    data = io.BytesIO()
    contact_sheet(rows).quantize(256).save(data, "PNG", optimize=True)
    write_file(path, data.getvalue(), "The picture")


def _clocked() -> Log:
    """Lines on stderr, with the seconds since now."""
    start = time.perf_counter()

    def log(text: str) -> None:
        print(f"{time.perf_counter() - start:7.1f} s  {text}", file=sys.stderr, flush=True)

    return log


if __name__ == "__main__":
    sys.exit(main())
