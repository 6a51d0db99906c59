"""The example workflows pass `comfy workflow validate` against the nodes of a real ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comfy_command import workflow_errors
from live_client import Client
from live_server import PACK

WORKFLOWS = sorted((PACK / "workflows").rglob("*.json"))
ABSENT = {"unknown_enum_value", "no_options_available"}
"""What is said of a file that this ComfyUI does not have."""
DOWNLOADED = {
    "model",
    "lora",
    "text_encoder",
    "audio_encoder",
    "vae",
    "clip_name",
    "audio_encoder_name",
    "image",
    "audio",
}
"""Inputs that name files of the user."""


@pytest.fixture(scope="module")
def object_info(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server says of its nodes, in a file."""
    file = tmp_path_factory.mktemp("info") / "object_info.json"
    file.write_text(json.dumps(client.get("/object_info")), encoding="utf-8")
    return file


def is_absent_file(error: dict[str, Any]) -> bool:
    return error["code"] in ABSENT and error["field"].rpartition(".")[2] in DOWNLOADED


def is_recording(error: dict[str, Any], workflow: Path) -> bool:
    """The microphone's widget, which is the page's alone and empty until somebody speaks."""
    content = json.loads(workflow.read_text(encoding="utf-8"))
    nodes = {str(node["id"]): node["type"] for node in content.get("nodes", [])}
    return nodes.get(str(error.get("node_id"))) == "RecordAudio" and error["field"] == "audio"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.relative_to(PACK / "workflows").as_posix())
def test_workflows_validate(workflow: Path, object_info: Path, tmp_path: Path) -> None:
    errors = workflow_errors(workflow, object_info, tmp_path)
    assert not [error for error in errors if not (is_absent_file(error) or is_recording(error, workflow))]
    if workflow.stem.endswith(("quickstart", "modular")):
        assert not errors
