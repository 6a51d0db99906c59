"""Write down the nodes as they are: `python -m tools.freeze_nodes`.

tests/nodes/schema.json says what saved graphs rely on, locales/en/nodeDefs.json repeats the words of the schemas for
ComfyUI's translations. Run it after a deliberate change of a node; the diff then shows what changed. A change that
would break saved graphs is refused unless `--break` is given.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "nodes"))

import fake_comfy  # noqa: E402
import fake_host  # noqa: E402
import frozen  # noqa: E402

ENGLISH = PROJECT / "locales" / "en" / "nodeDefs.json"


def words(schema: Any) -> dict[str, Any]:
    """The entry of one node in nodeDefs.json, where names of inputs have no dots."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {
            slot.id.replace(".", "_"): {"name": slot.display_name or slot.id, "tooltip": slot.tooltip}
            for slot in schema.inputs
        },
        "outputs": {
            str(number): {"name": slot.display_name, "tooltip": slot.tooltip}
            for number, slot in enumerate(schema.outputs)
        },
    }


def main() -> None:
    """Write both files."""
    with tempfile.TemporaryDirectory() as folder:
        fake_host.Host(Path(folder))
        schemas = [node.define_schema() for node in fake_comfy.load_pack().nodes.NODES]
    now = {schema.node_id: frozen.of_schema(schema) for schema in schemas}
    broken = frozen.changes(frozen.read(), now) if frozen.FILE.exists() else []
    if broken and "--break" not in sys.argv:
        sys.exit("This breaks saved graphs; --break does it all the same:\n" + "\n".join(broken))
    frozen.FILE.write_text(frozen.written(now), encoding="utf-8", newline="\n")
    text = json.dumps({s.node_id: words(s) for s in schemas}, indent=2, ensure_ascii=False) + "\n"
    ENGLISH.parent.mkdir(parents=True, exist_ok=True)
    ENGLISH.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
