"""What users and the ComfyUI registry receive: pins, metadata, assets, and nothing of the machine it was made on."""

import re
import subprocess
import wave
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from PIL import Image

import liveavatar

PROJECT = Path(__file__).parents[2]
ASSETS = PROJECT / "liveavatar" / "mini" / "assets"
LEFT_TO_COMFYUI = {"torch", "torchvision", "torchaudio", "torchsde", "numpy"}
"""What a ComfyUI already has in the build that fits the machine; asking again can replace it by one that does not."""


def requirements(name: str) -> list[Requirement]:
    lines = (PROJECT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def tracked() -> list[Path]:
    """Files under version control, or all files where there is no git."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: which files are published cannot be told")
    return [p for p in (PROJECT / name for name in listed.stdout.split("\0") if name) if p.is_file()]


@pytest.fixture(scope="module")
def metadata() -> dict:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))


def test_development_pins_are_exact_and_torch_comes_first():
    pins = requirements("requirements-dev.txt")
    assert pins[0].name == "torch"
    loose = [str(r) for r in pins if not re.fullmatch(r"==[0-9][0-9.]*", str(r.specifier)) or r.url]
    assert not loose, f"requirements-dev.txt: {loose} are no exact pins"


def test_user_requirements_leave_comfyuis_own_packages_alone():
    names = {r.name.lower() for r in requirements("requirements.txt")}
    assert not names & LEFT_TO_COMFYUI, f"requirements.txt asks for {sorted(names & LEFT_TO_COMFYUI)}"
    assert "espeakng-loader" not in names, "it is under the GPL, and nothing of what users run needs it"


def test_user_requirements_are_lower_bounds_that_the_pins_meet():
    pins = {r.name.lower(): Version(str(r.specifier)[2:]) for r in requirements("requirements-dev.txt")}
    for wanted in requirements("requirements.txt"):
        assert all(s.operator == ">=" for s in wanted.specifier), f"{wanted} is more than a lower bound"
        assert not wanted.url, f"{wanted} names an address"
        assert pins[wanted.name.lower()] in wanted.specifier, f"{wanted} is not met by the development pin"


def test_registry_metadata(metadata):
    project, comfy = metadata["project"], metadata["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["name"])
    assert "comfyui" not in project["name"], "the registry asks for a name without ComfyUI in it"
    assert project["version"] == liveavatar.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["license"] == "Apache-2.0"
    assert (PROJECT / project["readme"]).is_file()
    assert "Apache License" in (PROJECT / project["license-files"][0]).read_text(encoding="utf-8")
    assert Version("3.10") in SpecifierSet(project["requires-python"])
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert comfy["PublisherId"] and comfy["DisplayName"]
    assert Version("0.3.64") in SpecifierSet(comfy["requires-comfyui"])


def test_install_takes_the_users_requirements_and_only_the_library(metadata):
    assert metadata["project"]["dynamic"] == ["dependencies"]
    setuptools = metadata["tool"]["setuptools"]
    assert setuptools["dynamic"]["dependencies"]["file"] == ["requirements.txt"]
    assert setuptools["packages"]["find"]["include"] == ["liveavatar*"]
    folders = {p.parent for p in (PROJECT / "liveavatar").rglob("*.py")}
    assert not [f for f in folders if not (f / "__init__.py").exists()], "a folder of modules without __init__.py"


def test_the_published_archive_leaves_development_files_out():
    ignored = set((PROJECT / ".comfyignore").read_text(encoding="utf-8").split())
    pictures = {"docs/figures/", "docs/*.png", "docs/*.webp"}
    assert {"tests/", "tools/", *pictures, ".ci/", "Makefile", "requirements-dev.txt"} <= ignored


def test_the_portrait_is_small_and_whole():
    assert (ASSETS / "portrait.png").stat().st_size < 60_000
    with Image.open(ASSETS / "portrait.png") as picture:
        assert picture.size == (512, 512)
        assert len(picture.convert("RGB").getcolors(1 << 16) or []) > 100


def test_the_voice_is_small_and_speaks_for_a_few_seconds():
    assert (ASSETS / "voice.wav").stat().st_size < 220_000
    with wave.open(str(ASSETS / "voice.wav"), "rb") as sound:
        assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
        assert 4 < sound.getnframes() / sound.getframerate() < 6


def test_assets_travel_with_the_package(metadata):
    assert metadata["tool"]["setuptools"]["package-data"] == {
        "liveavatar.mini": ["assets/*", "model/**/*"],
        "liveavatar.live": ["page/*"],
    }
    assert (ASSETS.parent / "__init__.py").is_file(), "without it the assets are not installed"


MACHINE_PATH = re.compile(r"(?<![\w.*~/])/(?:work|root|home|Users)/[\w.]")
REGISTRY = re.compile(
    r"https?://[^\s\"']*/(?:simple|debian|-)/|--(?:extra-)?index-url[ =]h|proxy\.golang|files\.pythonhosted"
)


def test_tracked_files_carry_no_machine_path_and_no_registry_host():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for rule in (MACHINE_PATH, REGISTRY):
            found += [f"{path.relative_to(PROJECT)}: {m.group()!r}" for m in rule.finditer(text)]
    assert not found, "\n".join(found)


def test_tracked_files_are_small():
    model = PROJECT / "liveavatar" / "mini" / "model"
    large = [p.name for p in tracked() if p.stat().st_size > 2_000_000 and model not in p.parents]
    assert not large, f"{large}: everyone clones them"
    assert sum(p.stat().st_size for p in tracked() if model in p.parents) < 24_000_000
    cut = [p for p in tracked() if p.parent == PROJECT / "tests" / "golden" / "cut"]
    assert cut and sum(p.stat().st_size for p in cut) < 6_100_000


@pytest.mark.parametrize("text", ["x = '/" + "root/models'", "see https://host/pypi/" + "simple/torch"])
def test_the_rules_see_what_they_forbid(text):
    assert MACHINE_PATH.search(text) or REGISTRY.search(text)
