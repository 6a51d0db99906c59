"""Write the example graphs in workflows/: `python -m tools.workflows`.

Each description in `workflow_graphs.py` becomes three files: the graph for the browser (UI format 0.4), the same prompt
for the API in workflows/api/, and a thumbnail.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import workflow_graphs, workflow_pictures
from .workflow_drawing import Drawing

FOLDER = Path(__file__).parents[1] / "workflows"


def files() -> dict[str, str]:
    """All JSON files under workflows/, by name, with their text."""
    made = {}
    for graph in workflow_graphs.GRAPHS:
        drawing = Drawing(graph)
        made[f"{graph.name}.json"] = _text(drawing.workflow())
        made[f"api/{graph.name}.json"] = _text(drawing.prompt())
    return made


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write everything; `--no-pictures` leaves the thumbnails alone."""
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")
    if "--no-pictures" not in sys.argv:
        for graph in workflow_graphs.GRAPHS:
            workflow_pictures.draw(Drawing(graph), FOLDER / f"{graph.name}.jpg")


if __name__ == "__main__":
    main()
