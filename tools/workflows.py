"""Write the example graphs in workflows/: `python -m tools.workflows`.

Each description in `workflow_graphs.py` becomes three files: the graph for the browser (UI format 0.4), the same prompt
for the API in workflows/api/, and a thumbnail. ComfyUI shows nothing but names and thumbnails, so that names begin with
their place in the list and thumbnails say what each is for. `workflow_blueprint.py` makes the one in subgraphs/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from . import workflow_blueprint, workflow_graphs, workflow_pictures
from .workflow_drawing import Drawing

PROJECT = Path(__file__).parents[1]
FOLDER = PROJECT / "workflows"


def files() -> dict[str, str]:
    """All JSON files, by their path in the project, with their text."""
    made = {f"subgraphs/{workflow_blueprint.NAME}.json": _text(workflow_blueprint.blueprint())}
    for graph in workflow_graphs.GRAPHS:
        drawing = Drawing(graph)
        made[f"workflows/{template(graph)}.json"] = _text(drawing.workflow())
        made[f"workflows/api/{graph.name}.json"] = _text(drawing.prompt())
    return made


def template(graph: workflow_graphs.Graph) -> str:
    """The name that the template browser shows."""
    return f"{1 + workflow_graphs.GRAPHS.index(graph):02}_{graph.name}"


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write everything and remove what nothing describes any more; `--no-pictures` leaves the thumbnails alone."""
    made = files()
    pictures = {f"workflows/{template(graph)}.jpg": graph for graph in workflow_graphs.GRAPHS}
    for path in [*FOLDER.rglob("*.*"), *(PROJECT / "subgraphs").glob("*.json")]:
        if path.relative_to(PROJECT).as_posix() not in made | pictures:
            path.unlink()
    for name, text in made.items():
        (PROJECT / name).parent.mkdir(parents=True, exist_ok=True)
        (PROJECT / name).write_text(text, encoding="utf-8", newline="\n")
    if "--no-pictures" not in sys.argv:
        for name, graph in pictures.items():
            workflow_pictures.draw(Drawing(graph), PROJECT / name)


if __name__ == "__main__":
    main()
