"""What a person sees: templates open, Run shows progress, the video plays. In both node renderers.

Screenshots go to $LIVEAVATAR_SCREENSHOTS, or to pytest's temporary folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MINIATURE, MODES, Look, browse
from live_server import Absent, Server


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the screenshots."""
    named = os.environ.get("LIVEAVATAR_SCREENSHOTS")
    return Path(named) if named else tmp_path_factory.mktemp("screenshots")


@pytest.fixture(scope="module", params=MODES)
def look(request: pytest.FixtureRequest, server: Server, out: Path) -> Iterator[Look]:
    """One page per renderer."""
    try:
        with browse(server.url, request.param, out) as page:
            yield page
    except Absent as reason:
        pytest.skip(str(reason))


@pytest.fixture(autouse=True)
def at_rest(look: Look) -> Iterator[None]:
    """Each test begins with an idle server and judges only its own errors."""
    look.wait_for_end()
    look.errors.clear()
    yield
    look.wait_for_end()


def test_every_template_opens_without_missing_nodes_overlaps_or_errors(look: Look) -> None:
    names = look.templates()
    assert set(MINIATURE) <= set(names)
    for name in names:
        look.open(name)
        look.picture(f"open_{name}")
        assert look.unknown() == [], name
        assert look.overlaps() == [], name
    assert look.ours == []


@pytest.mark.parametrize("template", MINIATURE)
def test_run_shows_progress_then_the_playing_video(look: Look, template: str) -> None:
    graph = look.open(template)
    puller = "LiveAvatarDecode" if template == "modular" else "LiveAvatarGenerate"
    _new_seed(look)
    look.focus("LiveAvatarSampler", puller)
    look.press_run()
    look.wait_for_picture()
    look.picture(f"{template}_runs")
    look.wait_for_panel(r"\d s in ")
    look.wait_for_end()
    heard = look.heard()
    watching = {puller} | ({"LiveAvatarSampler"} if template == "modular" else set())
    for kind in watching:
        shown = [one["text"] for one in heard if one["type"] == kind]
        assert len({text for text in shown if re.search(r"block \d+/\d+ · step \d+/\d+", text)}) > 1, (kind, shown)
        (last,) = (one["text"] for one in look.panels() if one["type"] == kind)
        assert re.fullmatch(r"\d+\.\d s in .+ fps", last), last
    assert any(one["live"] for one in heard if one["type"] == puller), "no live picture was shown"
    look.focus("LiveAvatarSampler", puller)
    assert look.play()
    look.picture(f"{template}_plays")
    assert look.ours == []
    assert len(graph["nodes"]) == len(look.page.evaluate("() => look.root().serialize().nodes"))


def test_the_plan_is_drawn_as_bars(look: Look) -> None:
    look.open("modular")
    look.press_run()
    look.wait_for_end()
    bars = "() => look.visible('.liveavatar.plan .bar').length"
    assert look.page.evaluate(bars) >= 1
    (plan,) = (one["text"] for one in look.panels() if one["type"] == "LiveAvatarPlan")
    assert re.search(r"\d (MB|GB).*weights", plan), plan
    look.focus("LiveAvatarPlan")
    look.picture("plan")
    assert look.ours == []


def test_cancel_is_said_and_the_next_run_ends_well(look: Look) -> None:
    look.open("modular")
    _new_seed(look)
    look.press_run()
    look.wait_for_panel(r"block \d")
    look.page.evaluate("() => window.comfyAPI.api.api.interrupt(null)")
    look.wait_for_panel("^Cancelled")
    look.wait_for_end()
    look.focus("LiveAvatarSampler", "LiveAvatarDecode")
    look.picture("cancelled")
    look.press_run()
    look.wait_for_panel(r"\d s in ")
    assert look.ours == []


def test_the_last_line_and_the_video_outlive_another_tab_and_a_reload(look: Look) -> None:
    look.open("quickstart")
    _new_seed(look)
    look.press_run()
    look.wait_for_panel(r"\d s in ")
    look.wait_for_end()
    (line,) = _lines(look)
    look.open("modular")
    look.page.evaluate("() => look.app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    look.wait_for_panel(r"\d s in ")
    assert _lines(look) == [line]
    look.page.wait_for_timeout(1500)  # the draft of a workflow is kept a moment after it was changed
    look.reload()
    look.wait_for_panel(r"\d s in ")
    assert _lines(look) == [line]
    look.focus("LiveAvatarGenerate")
    assert look.play()
    look.picture("reloaded")
    assert look.ours == []


def test_the_old_video_is_hidden_while_a_run_shows_its_frames(look: Look) -> None:
    look.open("quickstart")
    for _ in range(2):
        _new_seed(look)
        look.press_run()
        look.wait_for_picture(alone=True)
        look.focus("LiveAvatarGenerate")
        look.picture("old_video_hidden")
        look.wait_for_end()
        look.focus("LiveAvatarGenerate")
        assert look.play()
    assert look.ours == []


def test_progress_reaches_nodes_inside_a_subgraph(look: Look) -> None:
    look.open("modular")
    _new_seed(look)
    look.page.evaluate(
        "() => look.root().convertToSubgraph(new Set(look.root().nodes"
        ".filter((node) => node.type === 'LiveAvatarDecode')))"
    )
    look.press_run()
    look.wait_for_panel(r"block \d")
    look.wait_for_panel(r"\d s in ")
    heard = look.heard()
    for kind in ("LiveAvatarDecode", "LiveAvatarSampler"):
        assert any("block" in one["text"] for one in heard if one["type"] == kind), kind
    look.picture("subgraph")
    assert look.ours == []


def test_widgets_of_the_page_are_in_no_workflow_and_no_prompt(look: Look) -> None:
    """The saved graph has as many widget values as the template; no input of the prompt is the script's."""
    graph = look.open("modular")
    saved = look.page.evaluate("() => look.root().serialize().nodes")
    values = {node["id"]: len(node.get("widgets_values") or []) for node in graph["nodes"] if _is_ours(node)}
    assert {node["id"]: len(node.get("widgets_values") or []) for node in saved if _is_ours(node)} == values
    prompt = look.page.evaluate("() => look.app.graphToPrompt().then((made) => made.output)")
    assert not [name for node in prompt.values() for name in node["inputs"] if "liveavatar" in name.lower()]


def test_the_words_are_chinese_where_comfyui_is(look: Look) -> None:
    with look.speaking("zh") as chinese:
        chinese.open("modular")
        texts = [one["text"] for one in chinese.panels()]
        assert texts and all(re.search(r"[\u4e00-\u9fff]", text) for text in texts), texts
        chinese.focus("LiveAvatarSampler", "LiveAvatarDecode")
        chinese.picture("chinese")
        assert chinese.ours == []


def _lines(look: Look) -> list[str]:
    return [one["text"] for one in look.panels() if one["type"] == "LiveAvatarGenerate"]


def _is_ours(node: dict) -> bool:
    return str(node["type"]).startswith("LiveAvatar")


def _new_seed(look: Look) -> None:
    """A seed that no run had, so that nothing is taken from the cache."""
    look.page.evaluate(
        "() => look.all(look.root()).flatMap((node) => node.widgets ?? [])"
        ".filter((widget) => widget.name === 'seed').forEach((widget) => { widget.value = Date.now() % 1e9; })"
    )
