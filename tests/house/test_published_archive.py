"""What the registry's own tool makes of the pack: it passes its checks, and the archive holds what users need."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import tomllib
from comfy_command import comfy
from PIL import Image

from tools import package

PROJECT = Path(__file__).parents[2]
PUBLISHED = {
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "__init__.py",
    "docs",
    "examples",
    "liveavatar",
    "locales",
    "nodes",
    "pyproject.toml",
    "requirements.txt",
    "subgraphs",
    "web",
    "workflows",
}
"""Files and folders at the top of the archive, each whole; of docs/ only the pages, which the README leads to."""


def git(*words: str, cwd: Path = PROJECT) -> str:
    return subprocess.run(["git", *words], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Files under version control."""
    try:
        listed = git("ls-files", "-z").split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: which files are published cannot be told")
    return [name for name in listed if name and (PROJECT / name).is_file()]


@pytest.fixture(scope="module")
def checkout(tracked, tmp_path_factory) -> Path:
    """A repository of its own with the tracked files as they are now."""
    folder = tmp_path_factory.mktemp("pack")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, folder / name)
    git("init", "--quiet", cwd=folder)
    git("add", "--all", "--force", cwd=folder)
    return folder


def test_the_registry_finds_nothing_to_complain_of(checkout, tmp_path):
    result = comfy("node", "validate", home=tmp_path, cwd=checkout)
    assert result.returncode == 0, result.stderr
    assert "All validation checks passed" in result.stdout + result.stderr


def test_the_registry_would_see_eval(checkout, tmp_path):
    """The check above looks: a file that it warns of is named."""
    pack = tmp_path / "pack"
    pack.mkdir()
    shutil.copyfile(checkout / "pyproject.toml", pack / "pyproject.toml")
    (pack / "nodes.py").write_text("print(eval('1'))\n", encoding="utf-8")
    result = comfy("node", "validate", home=tmp_path, cwd=pack)
    said = result.stdout + result.stderr
    assert "Security warnings" in said and "nodes.py" in said and "All validation checks passed" not in said


def test_the_archive_holds_what_users_need_and_nothing_else(checkout, tracked, tmp_path):
    result = comfy("node", "pack", home=tmp_path, cwd=checkout)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(checkout / "node.zip") as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    assert {name.split("/")[0] for name in packed} == PUBLISHED
    wanted = {name for name in tracked if name.split("/")[0] in PUBLISHED}
    assert packed == {name for name in wanted if not name.startswith("docs/") or name.endswith(".md")}


def test_make_package_makes_what_the_registry_s_tool_makes_and_the_same_bytes_again(checkout, tmp_path):
    result = comfy("node", "pack", home=tmp_path, cwd=checkout)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(checkout / "node.zip") as theirs:
        wanted = {name: theirs.read(name) for name in theirs.namelist() if not name.endswith("/")}
    first, again = (package.pack(tmp_path / name, checkout).read_bytes() for name in ("a.zip", "b.zip"))
    assert first == again
    with zipfile.ZipFile(tmp_path / "a.zip") as ours:
        assert {name: ours.read(name) for name in ours.namelist()} == wanted
        assert {info.external_attr >> 16 for info in ours.infolist()} == {0o100644}
    assert package.default_name(checkout) == "live-avatar-0.1.0.zip"


def test_what_is_no_checkout_cannot_be_packed(tmp_path):
    with pytest.raises(RuntimeError, match="no git checkout"):
        package.pack(tmp_path / "a.zip", tmp_path)
    assert not (tmp_path / "a.zip").exists()


def test_the_registry_s_page_has_all_its_parts():
    written = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    project, page = written["project"], written["tool"]["comfy"]
    assert {"Repository", "Issues", "Documentation"} <= project["urls"].keys()
    assert page["DisplayName"] == "Live Avatar S2V" and page["PublisherId"] and page["requires-comfyui"]
    shapes = {}
    for part in ("Icon", "Banner"):
        address, _, file = page[part].partition("/main/")
        assert address.startswith("https://raw.githubusercontent.com/")
        with Image.open(PROJECT / file) as image:
            shapes[part] = image.size
    assert shapes["Icon"][0] == shapes["Icon"][1] <= 400
    assert shapes["Banner"][0] * 9 == shapes["Banner"][1] * 21
