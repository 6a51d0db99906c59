"""The archive of `make package`, unpacked into the custom nodes of a fresh ComfyUI, is the pack."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import frozen
import graphs
import pytest
from live_server import PACK, Absent, find_core, serve
from outcome import assert_correct, saved, succeeded

from tools import package


def test_the_unpacked_archive_registers_and_makes_the_quickstart_video(tmp_path: Path) -> None:
    try:
        find_core()
        archive = package.pack(tmp_path / "pack.zip", PACK)
    except (Absent, RuntimeError) as reason:
        pytest.skip(str(reason))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "unpacked")
    assert not (tmp_path / "unpacked" / "tests").exists()
    prompt = json.loads((tmp_path / "unpacked" / "workflows" / "api" / "quickstart.json").read_text(encoding="utf-8"))
    with serve(tmp_path / "base", pack=tmp_path / "unpacked") as server:
        assert frozen.read().keys() <= server.client.get("/object_info").keys()
        run = succeeded(server.client.run(prompt))
        (save,) = (name for name, node in prompt.items() if node["class_type"] == "SaveVideo")
        assert_correct(saved(server, run, save), graphs.seconds_of(graphs.ASSETS / "voice.wav"))
