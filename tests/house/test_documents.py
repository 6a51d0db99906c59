"""The written pages: every link leads somewhere, every command and flag they name exists."""

import re
from pathlib import Path

import pytest

from liveavatar.cli import COMMANDS

PROJECT = Path(__file__).parents[2]
PAGES = [
    *sorted(PROJECT.glob("*.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "web").rglob("*.md")),
    *sorted((PROJECT / "tests").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
COMMAND = re.compile(r"python -m liveavatar +([a-z][a-z-]*)")


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def anchors(page: Path) -> set[str]:
    """Names of headings as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page):
    named = set(COMMAND.findall(page.read_text(encoding="utf-8")))
    assert named <= COMMANDS.keys()


def test_the_contributors_pages_name_files_that_exist():
    """Of paths in backquotes: `planner/memory.py` in ARCHITECTURE.md lies in liveavatar/."""
    for page in (PROJECT / "ARCHITECTURE.md", PROJECT / "CONTRIBUTING.md"):
        named = re.findall(r"`([\w/]+\.(?:py|txt|sh|toml|md)|[\w]+/)`", page.read_text(encoding="utf-8"))
        missing = [n for n in named if not (PROJECT / n).exists() and not (PROJECT / "liveavatar" / n).exists()]
        assert named and not missing
