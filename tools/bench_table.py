"""Rewrite the tables of figures in docs/bench.md from docs/figures/*.json: `python -m tools.bench_table`.

Each file is the suite.json of one device, as `bench suite --json` and tools/gpu_trial.sh leave it.
"""

from __future__ import annotations

from pathlib import Path

from liveavatar.bench.command_suite import suite_markdown
from liveavatar.bench.suite import read_suite

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FIGURES = DOCS / "bench.md", DOCS / "figures"
BEGIN, END = "<!-- figures: made by tools/bench_table.py -->", "<!-- end of figures -->"


def tables() -> str:
    """One table for each file, under the file's name."""
    return "\n\n".join(
        f"### {path.stem}\n\n{suite_markdown(read_suite(path))}" for path in sorted(FIGURES.glob("*.json"))
    )


def rewritten(page: str) -> str:
    """The page with the tables as they are now."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
