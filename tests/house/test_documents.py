"""The written pages: every link leads somewhere, every command and flag of ours that they name exists."""

import re
from pathlib import Path

import pytest

from liveavatar.cli import COMMANDS, main

PROJECT = Path(__file__).parents[2]
PAGES = [
    *sorted(PROJECT.glob("*.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "web").rglob("*.md")),
    *sorted((PROJECT / "tests").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
COMMAND = re.compile(r"python -m liveavatar +([a-z][a-z-]*)([^`\n]*)")
FLAG = re.compile(r"--[a-z][a-z-]*")
TESTS_IN = re.compile(r"((?:`test_\w+`(?:, | in ))+)\[[^]]+\]\(([^)]+)\)")


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
    named = {match[1] for match in COMMAND.finditer(page.read_text(encoding="utf-8"))}
    assert named <= COMMANDS.keys()


def flags(*words: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The options that the help of a command names."""
    with pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    assert left.value.code == 0
    return set(FLAG.findall(capsys.readouterr().out))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_exist(page, capsys):
    for match in COMMAND.finditer(page.read_text(encoding="utf-8")):
        named = set(FLAG.findall(match[2]))
        kind = match[2].split()[:1] if match[1] in ("bench", "cluster") else []
        assert not named - flags(match[1], *kind, capsys=capsys), match[0]


def test_the_table_of_options_is_that_of_generate(capsys):
    page = (PROJECT / "docs" / "command-line.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `--")]
    named = {flag for row in rows for flag in FLAG.findall(row)}
    assert len(named) > 20 and not named - flags("generate", capsys=capsys)


def test_the_contributors_pages_name_files_that_exist():
    """Of paths in backquotes: `planner/memory.py` in ARCHITECTURE.md lies in liveavatar/."""
    for page in (PROJECT / "ARCHITECTURE.md", PROJECT / "CONTRIBUTING.md"):
        named = re.findall(r"`([\w/]+\.(?:py|txt|sh|toml|md)|[\w]+/)`", page.read_text(encoding="utf-8"))
        missing = [n for n in named if not (PROJECT / n).exists() and not (PROJECT / "liveavatar" / n).exists()]
        assert named and not missing


def test_what_holds_a_threat_exists():
    """Every test that SECURITY.md names stands in the file that it links."""
    named = 0
    for row in (PROJECT / "SECURITY.md").read_text(encoding="utf-8").splitlines():
        found = [(test, file) for tests, file in TESTS_IN.findall(row) for test in re.findall(r"`(test_\w+)`", tests)]
        assert len(found) == row.count("`test_"), row
        for test, file in found:
            assert f"def {test}(" in (PROJECT / file).read_text(encoding="utf-8"), test
        named += len(found)
    assert named > 15
