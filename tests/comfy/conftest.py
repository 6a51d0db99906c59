"""One real ComfyUI for all tests of this folder, or a skip that says how to get one.

This folder goes on the path as a whole, not as a package `comfy`: that name belongs to ComfyUI.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "nodes"))  # for `frozen`, the shape of the schemas

from graphs import write_inputs
from live_client import Client
from live_server import Absent, Server, serve

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A server's start and a network on a busy machine take their time."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI with this pack."""
    try:
        with serve(tmp_path_factory.mktemp("comfyui")) as running:
            write_inputs(running.base / "input")
            yield running
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    """Speaks to that ComfyUI."""
    return server.client
