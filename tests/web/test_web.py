"""The web module under node, where node is installed; a browser has it in tests/comfy."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.planner import make_plan
from liveavatar.request import Request, resolve

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "web" / "js" / "liveavatar.js"
MODULES = (MODULE, MODULE.with_name("live.js"))
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_panel_shows_what_the_messages_say() -> None:
    """tests/web/*.test.mjs, each named for what it proves."""
    files = sorted(str(path) for path in Path(__file__).parent.glob("*.test.mjs"))
    done = subprocess.run([str(NODE), "--test", *files], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(?:#|ℹ) pass (\d+)$", done.stdout, re.MULTILINE)
    assert passed and int(passed[1]) > 0, "node ran no test"


@pytest.mark.parametrize(("module", "own"), [(MODULES[0], []), (MODULES[1], ["./liveavatar.js"])])
def test_a_module_needs_only_core_and_asks_nobody_outside(module: Path, own: list[str]) -> None:
    """Every script under web/ is loaded by the page: these, core's two public scripts, no address, no eval."""
    assert sorted(path.name for path in (ROOT / "web").rglob("*.js")) == sorted(one.name for one in MODULES)
    source = module.read_text(encoding="utf-8")
    imported = re.findall(r"""(?:from|import\()\s*["']([^"']+)""", source)
    assert sorted(imported) == ["../../../scripts/api.js", "../../../scripts/app.js", *own]
    assert not re.findall(r"https?://|\beval\(|new Function|innerHTML|queuePrompt|onDraw\w+|window\.\w+\s*=", source)


@pytest.mark.parametrize("module", MODULES)
def test_every_word_is_there_in_both_languages(module: Path) -> None:
    """The keys of English are those of Chinese; Chinese also has the server's names."""
    source = module.read_text(encoding="utf-8")
    english, chinese = (re.search(rf"\n  {name}: {{\n(.*?)\n  }},", source, re.DOTALL) for name in ("en", "zh"))
    assert english and chinese
    keys = [re.findall(r"^    (\w+):", found[1], re.MULTILINE) for found in (english, chinese)]
    assert keys[0] and set(keys[0]) <= set(keys[1])


def test_everything_that_takes_memory_has_a_chinese_name() -> None:
    """Plans name it in English; "VAE" is the same word in both languages."""
    effective = resolve(Request(), (704, 384), 16_000, 16_000)
    terms = make_plan(effective, WAN2_2_S2V_14B, model="wan2.2-s2v-14b").terms_by_device["cpu"]
    chinese = re.search(r"\n  zh: {\n(.*?)\n  },", MODULE.read_text(encoding="utf-8"), re.DOTALL)
    assert chinese
    named = {a or b for a, b in re.findall(r'^    (?:"([^"]+)"|(\w+)):', chinese[1], re.MULTILINE)}
    assert set(terms) - {"VAE"} <= named
