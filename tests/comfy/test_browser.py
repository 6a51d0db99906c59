"""What a person sees: templates open, Run shows progress, the video plays. In both node renderers.

Screenshots go to $LIVEAVATAR_SCREENSHOTS, or to pytest's temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MINIATURE, MODES, Look, browse
from live_server import Absent, Server

SMALL = (1500, 800)
"""The window in which templates must be readable."""
BLUEPRINT = "Talking Avatar (Live Avatar)"
EMPTY = {"nodes": [], "links": [], "groups": [], "config": {}, "extra": {}, "version": 0.4}
_WIRE_BLUEPRINT = """() => {
  const graph = look.root();
  const blueprint = graph.nodes.find((node) => node.subgraph);
  const add = (type, x, y) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = [x, y];
    graph.add(node);
    return node;
  };
  const [x, y] = blueprint.pos;
  const sample = add("LiveAvatarSample", x - 420, y);
  const save = add("SaveVideo", x + blueprint.size[0] + 80, y);
  sample.connect(0, blueprint, "image");
  sample.connect(1, blueprint, "audio");
  blueprint.connect(0, save, "video");
  const values = { size: "128x128", seconds: 0.5, seed: Date.now() % 1e9 };
  for (const widget of blueprint.widgets) if (widget.name in values) widget.value = values[widget.name];
}"""
"""Between the sample and Save Video, with values for a short video."""


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


def test_every_template_opens_readable_and_without_a_complaint(look: Look) -> None:
    """In a small window, as the template browser opens it: no word is left out, and no node is larger than its file
    says, so that what tests/nodes says of wires and distances holds here."""
    names = look.templates()
    assert {*MINIATURE} <= {name[3:] for name in names}
    with look.sized(*SMALL):
        for name in names:
            graph = look.open(name)
            look.picture(f"open_{name}")
            view = look.view()
            assert view["scale"] >= (0.75 if name[3:] == "quickstart" else 0.6), (name, view)
            assert not view["wordless"], name
            assert look.unknown() == [], name
            assert look.overlaps() == [], name
            _no_larger(look.sizes(), graph)
    assert look.ours == []


@pytest.mark.parametrize(("said", "meant"), [(True, "on"), (False, "off")])
def test_the_switch_of_an_older_workflow_is_shown_as_a_choice(look: Look, said: bool, meant: str) -> None:
    graph = look.open("24gb_card")
    (backend,) = (node for node in graph["nodes"] if node["type"] == "LiveAvatarBackend")
    values = "(id) => look.root().getNodeById(id).widgets.map((widget) => [widget.name, widget.value])"
    at = [name for name, _ in look.page.evaluate(values, backend["id"])].index("compile")
    assert backend["widgets_values"][at] == "auto"
    backend["widgets_values"][at] = said
    look.show(graph, "an older one")
    assert dict(look.page.evaluate(values, backend["id"]))["compile"] == meant
    look.picture(f"compile_was_{said}")
    assert look.ours == []


def test_a_further_speaker_finds_sockets(look: Look) -> None:
    """Where this ComfyUI knows sockets that grow; both kinds make one prompt of the template."""
    graph = look.open("two_speakers")
    (speakers,) = (node for node in graph["nodes"] if node["type"] == "LiveAvatarSpeakers")
    pair = [slot["name"] for slot in speakers["inputs"]]
    shown = look.page.evaluate("(id) => look.root().getNodeById(id).inputs.map((slot) => slot.name)", speakers["id"])
    grown = [f"{kind}.{kind}_{number}" for kind in ("audio", "mask") for number in (1, 2, 3)]
    assert shown == (grown if len(shown) > len(pair) else pair)
    prompt = look.page.evaluate("() => look.app.graphToPrompt().then((made) => made.output)")
    assert list(prompt[str(speakers["id"])]["inputs"]) == pair
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
    _new_seed(look)
    look.press_run()
    look.wait_for_picture()
    look.wait_for_end()
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
    look.open("quickstart")
    assert _lines(look) == ["Progress appears here while it runs."]
    assert look.page.evaluate("() => look.shown(look.videos()).length") == 0, "another copy's video"
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


def test_names_of_nodes_are_chinese_where_comfyui_is(look: Look) -> None:
    with look.speaking("zh") as chinese, chinese.sized(*SMALL):
        for name in ("modular", "24gb_card"):
            chinese.open(name)
            titles = chinese.page.evaluate("() => look.root().nodes.map((node) => [node.type, node.title])")
            named = [title for kind, title in titles if kind != "LiveAvatarGenerate"]  # that one is the pack's name
            assert all(re.search(r"[\u4e00-\u9fff]", title) for title in named), titles
            chinese.picture(f"chinese_{name}")


def test_the_blueprint_is_dropped_from_the_node_library_and_runs(look: Look) -> None:
    if not look.page.evaluate("() => fetch('/api/global_subgraphs').then((answer) => answer.ok)"):
        pytest.skip("this ComfyUI has no blueprints")
    look.show(EMPTY, "blueprint")
    look.page.evaluate("() => look.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    look.page.locator("input[placeholder*='earch']").first.fill("Talking Avatar")
    entry = look.page.get_by_text(BLUEPRINT).first
    entry.wait_for(timeout=20_000)
    look.picture("blueprint_in_the_library")
    entry.drag_to(look.page.locator("#graph-canvas"), target_position={"x": 900, "y": 300})
    look.page.wait_for_function("() => look.root().nodes.some((node) => node.subgraph)", timeout=20_000)
    look.page.evaluate("() => look.app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    look.page.evaluate(_WIRE_BLUEPRINT)
    look.page.wait_for_timeout(700)
    look.picture("blueprint")
    look.press_run()
    look.wait_for_panel(r"\d s in ", 600)
    look.wait_for_end()
    heard = {one["type"] for one in look.heard() if "block" in one["text"]}
    assert {"LiveAvatarSampler", "LiveAvatarDecode"} <= heard
    assert look.ours == []


def test_the_quickstart_is_an_app_too(look: Look) -> None:
    toggle = "Comfy.ToggleLinear"
    if not look.has_command(toggle):
        pytest.skip("this frontend has no app mode")
    look.open("quickstart")
    _new_seed(look)
    _set_widgets(look, seconds=0.5)
    look.page.evaluate("(name) => look.app.extensionManager.command.execute(name)", toggle)
    try:
        widgets = look.page.get_by_test_id("linear-widgets")
        widgets.wait_for(timeout=20_000)
        assert widgets.inner_text().split("\n")[0] == "prompt"
        assert {"prompt", "seed", "seconds"} <= set(widgets.inner_text().split())
        with contextlib.suppress(Exception):  # the first time, ComfyUI explains its apps
            look.page.get_by_role("button", name="Skip").click(timeout=5000)
        look.picture("app")
        look.runs += 1
        look.page.get_by_test_id("linear-run-button").get_by_role("button", name="Run").click()
        look.wait_for_end(600)
        look.page.wait_for_function("() => look.visible('video').length > 0", timeout=60_000)
        look.picture("app_ran")
    finally:
        look.page.evaluate("(name) => look.app.extensionManager.command.execute(name)", toggle)
    assert look.ours == []


def _no_larger(drawn: dict[int, tuple[float, float]], graph: dict) -> None:
    """Every node stays in the box of its file; an image or a player that is shown may not be there yet."""
    for node in graph["nodes"]:
        width, height = drawn[node["id"]]
        assert width <= node["size"][0] + 2, (node["type"], width)
        assert round(height, 2) <= node["size"][1] + 32, (node["type"], height)


def _set_widgets(look: Look, **values: float | str) -> None:
    look.page.evaluate(
        "(values) => look.root().nodes.flatMap((node) => node.widgets ?? []).forEach((widget) => {"
        " if (widget.name in values) widget.value = values[widget.name]; })",
        values,
    )


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
