"""A real ComfyUI knows the pack: its nodes as frozen, its workflows, words, help pages and script."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
from pathlib import Path

import frozen
import pytest
from live_client import Client
from live_server import FOLDER, PACK, Server

NODES = frozen.read().keys()


def test_all_nodes_are_registered_under_one_category(client: Client) -> None:
    known = client.get("/object_info")
    ours = {name: node for name, node in known.items() if name.startswith("LiveAvatar")}
    assert ours.keys() == NODES
    assert {node["category"].split("/")[0] for node in ours.values()} == {"Live Avatar"}


def test_the_pack_is_imported_without_a_complaint(server: Server) -> None:
    starting = server.written().split("Starting server")[0]
    lines = [line for line in starting.splitlines() if FOLDER in line]
    assert any(re.search(r"\d seconds: .*" + FOLDER, line) for line in lines), lines
    assert not [line for line in lines if re.search("FAILED|[Ee]rror|[Ww]arning|Traceback", line)]


def test_object_info_is_the_frozen_schema(client: Client) -> None:
    seen = {name: frozen.of_object_info(info) for name, info in client.get("/object_info").items() if name in NODES}
    assert frozen.changes(frozen.read(), seen) == []


def test_the_template_browser_lists_every_workflow_and_serves_it(client: Client) -> None:
    listed = client.get("/workflow_templates").get(FOLDER, [])
    shipped = {file.stem: file for file in (PACK / "workflows").glob("*.json")}
    assert shipped
    assert sorted(listed) == sorted(shipped)
    for name, file in shipped.items():
        served = client.get(f"/api/workflow_templates/{FOLDER}/{urllib.parse.quote(name)}.json")
        assert served == json.loads(file.read_text(encoding="utf-8"))
        assert client.fetch(f"/api/workflow_templates/{FOLDER}/{urllib.parse.quote(name)}.jpg")[:2] == b"\xff\xd8"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_words_of_the_nodes_are_there_in_two_languages(client: Client, language: str) -> None:
    defined = client.get("/i18n")[language]["nodeDefs"]
    known = client.get("/object_info")
    for name in NODES:
        inputs = {given["id"].replace(".", "_") for given in frozen.of_object_info(known[name])["inputs"]}
        assert defined[name]["display_name"]
        assert set(defined[name].get("inputs", {})) == inputs, name


def test_the_script_is_listed_and_served_once(client: Client) -> None:
    scripts = [path for path in client.get("/extensions") if FOLDER in path or "live-avatar" in path.lower()]
    shipped = sorted(file.relative_to(PACK / "web").as_posix() for file in (PACK / "web").rglob("*.js"))
    assert sorted(scripts) == [f"/extensions/{FOLDER}/{name}" for name in shipped]
    for path in scripts:
        assert client.fetch(path) == (PACK / "web" / path.removeprefix(f"/extensions/{FOLDER}/")).read_bytes()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_node_has_a_help_page(client: Client, language: str) -> None:
    for name in sorted(NODES):
        try:
            page = client.fetch(f"/extensions/{FOLDER}/docs/{name}/{language}.md").decode()
        except urllib.error.HTTPError as error:
            pytest.fail(f"{name}/{language}.md: {error}")
        assert len(page) > 200, name


def test_nothing_of_the_checkout_but_the_web_folder_is_served(client: Client) -> None:
    for path in ("pyproject.toml", "../pyproject.toml", "%2e%2e/pyproject.toml", "docs/../../pyproject.toml"):
        with pytest.raises(urllib.error.HTTPError):
            client.fetch(f"/extensions/{FOLDER}/{path}")
    assert (PACK / Path("pyproject.toml")).is_file()
