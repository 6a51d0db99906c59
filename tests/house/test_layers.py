"""The order of the house: who may import whom, what may be loaded when, and how long a thing may be."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from liveavatar.doctor.host import versions

PROJECT = Path(__file__).parents[2]
LIBRARY = PROJECT / "liveavatar"
FOREIGN = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "nodes", "execution"}
HEAVY = {"diffusers", "transformers", "accelerate", "av", "soxr", "ray", "torchaudio", "torchvision"}
LAYERS = (
    {
        "errors",
        "config",
        "compiler",
        "noise_schedule",
        "request",
        "task_graph",
        "timeline",
        "timed_changes",
        "charts",
        "spool",
        "files",
        "storage",
        "attention_choice",
        "interrupt",
        "device_names",
        "gpus",
        "private_files",
        "utils",
        "events",
    },
    {"weights"},
    {"model", "vae", "encoders"},
    {"streams", "media", "pose", "receipt", "offload", "speakers"},
    {"planner", "placement", "stage", "stage_state", "components", "mini"},
    {"session"},
    {"video_state"},
    {"codec"},
    {"conditioning"},
    {"engine", "distributed"},
    {
        "bench",
        "doctor",
        "recorder",
        "hardware_cache",
        "meter",
        "inputs",
        "conditioning_cache",
        "mini/judge",
        "mini/exam",
        "mini/pair_exam",
        "mini/showing",
        "mini/evaluate",
    },
    {"continuation"},
    {"pipeline", "video_job"},
    {"live"},
    {
        "cli",
        "bench/command",
        "bench/command_frames",
        "bench/command_live",
        "bench/live",
        "bench/command_model",
        "bench/command_network",
        "bench/command_pipeline",
        "bench/command_suite",
        "doctor/command",
        "meter/command",
        "meter/report",
        "__main__",
        "__init__",
    },
)
"""Lowest first; a part imports its own layer and those below."""
DISTRIBUTED = (
    "reaper",
    "ray_compat",
    "cluster_token",
    "cluster",
    "cluster_node",
    "registry",
    "topology",
    "wire",
    "links",
    "snapshots",
    "task_queue",
    "stage_run",
    "worker",
    "codec_worker",
    "worker_handle",
    "pool",
    "queue",
    "status",
    "block_source",
    "kept_state",
    "monitor",
    "encoders",
    "backend",
    "__init__",
)
"""Lowest first: Ray itself, what both sides know, the workers' side, the caller's side."""
LONGEST_FILE = 600
LONGEST_FUNCTION = 60
SOURCES = sorted(LIBRARY.rglob("*.py"))
NODES = sorted((PROJECT / "nodes").rglob("*.py"))
WRITTEN = [*SOURCES, *sorted((PROJECT / "tools").glob("*.py")), *sorted((PROJECT / "tests").rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def part_of(path: Path) -> str:
    """The part of the library a file belongs to: `model` for liveavatar/model/rope.py, `cli` for liveavatar/cli.py.

    A file that stands in `LAYERS` by itself ("mini/evaluate") is a part of its own.
    """
    own = path.relative_to(LIBRARY).with_suffix("").as_posix()
    return own if any(own in parts for parts in LAYERS) else own.split("/")[0]


def layer_of(part: str) -> int:
    for rank, parts in enumerate(LAYERS):
        if part in parts:
            return rank
    raise AssertionError(f"liveavatar/{part} stands in no layer: give it its place in LAYERS")


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))


def roots(node: ast.Import | ast.ImportFrom) -> set[str]:
    """First names of what an absolute import names; nothing for a relative one."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {node.module.split(".")[0]} if node.module and not node.level else set()


def parts_imported(path: Path, node: ast.ImportFrom) -> set[str]:
    """Parts of the library a relative import reaches, or nothing for an absolute one."""
    if not node.level:
        return set()
    package = path.relative_to(LIBRARY).parts[:-1]
    above = package[: len(package) - (node.level - 1)]
    full = [*above, *(node.module.split(".") if node.module else [])]
    if full:
        return {full[0]}
    found = {alias.name for alias in node.names}
    return {n if (LIBRARY / n).is_dir() or (LIBRARY / f"{n}.py").exists() else "__init__" for n in found}


def at_module_scope(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported: not those in functions or under TYPE_CHECKING."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_library_never_imports_comfyui_or_the_nodes(path):
    found = set().union(*(roots(n) for n in imports(parse(path)))) & FOREIGN
    assert not found, f"{name_of(path)} imports {sorted(found)}: the arrow points from the nodes to the library"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_arrows_point_down_only(path):
    here = layer_of(part_of(path))
    for node in imports(parse(path)):
        assert "liveavatar" not in roots(node), f"{name_of(path)}:{node.lineno}: the library imports itself relatively"
        reached = parts_imported(path, node) if isinstance(node, ast.ImportFrom) else set()
        higher = sorted(p for p in reached - {"__init__"} if layer_of(p) > here)
        assert not higher, f"{name_of(path)}:{node.lineno} imports {higher}, which stands above {part_of(path)}"


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_workers_know_nothing_of_their_caller_and_ray_nothing_of_either(name):
    path = LIBRARY / "distributed" / f"{name}.py"
    inside = [node for node in imports(parse(path)) if isinstance(node, ast.ImportFrom) and node.level == 1]
    reached = {m for node in inside for m in ([node.module] if node.module else [alias.name for alias in node.names])}
    higher = sorted(reached - set(DISTRIBUTED[: DISTRIBUTED.index(name)]))
    assert not higher, f"{name_of(path)} imports {higher}, which stands above it"


def test_every_module_of_workers_has_its_place():
    assert {path.stem for path in (LIBRARY / "distributed").glob("*.py")} == set(DISTRIBUTED)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path):
    for node in at_module_scope(parse(path)):
        found = sorted(roots(node) & HEAVY)
        assert not found, f"{name_of(path)}:{node.lineno} imports {found} at module scope; move it into the function"


def private_ray_names(tree: ast.AST) -> list[str]:
    """Private names of Ray: in what is imported, in attributes of `ray`, and in strings that are imported or run."""
    found = [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    found += [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    found += [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return [name for name in found if re.search(r"\bray\._\w", name) or re.search(r"\bray\.[\w.]+\._[a-z]", name)]


@pytest.mark.parametrize("path", [p for p in (*SOURCES, *NODES) if p.stem != "ray_compat"], ids=name_of)
def test_private_names_of_ray_stand_in_one_file(path):
    found = private_ray_names(parse(path))
    assert not found, (
        f"{name_of(path)} uses {found}: only distributed/ray_compat.py may, so that a new Ray breaks one file"
    )


def test_the_supported_ray_is_the_same_everywhere():
    from liveavatar.distributed.ray_compat import OLDEST, REQUIREMENT, TOO_NEW

    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert extras["ray"] == [REQUIREMENT] == [f"ray>={OLDEST[0]}.{OLDEST[1]},<{TOO_NEW[0]}"]
    assert versions().wanted["ray"] == f"{OLDEST[0]}.{OLDEST[1]}"
    pins = (PROJECT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    (pin,) = (Requirement(line) for line in pins if line.startswith("ray=="))
    assert Requirement(REQUIREMENT).specifier.contains(str(pin.specifier).removeprefix("=="))


@pytest.mark.parametrize("module", ["liveavatar", "liveavatar.planner", "liveavatar.task_graph", "liveavatar.request"])
def test_importing_what_only_plans_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "liveavatar" in loaded
    heavy = loaded & (HEAVY | {"torch", "numpy", "PIL", "einops"})
    assert not heavy, f"import {module} loads {sorted(heavy)}"


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_files_and_functions_fit_in_the_head(path):
    length = len(path.read_text(encoding="utf-8").splitlines())
    assert length <= LONGEST_FILE, f"{name_of(path)} has {length} lines: it holds two ideas"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = code_lines(node)
            assert lines <= LONGEST_FUNCTION, f"{name_of(path)}: {node.name} has {lines} lines without its docstring"


def test_the_rules_see_what_they_forbid(tmp_path):
    """The checks themselves: a late import does not run at module scope, one in a class or a try does."""
    tree = ast.parse(
        "import os\ntry:\n import av\nexcept ImportError:\n av = None\nif TYPE_CHECKING:\n import ray\n"
        "def f():\n import diffusers\nclass C:\n import soxr\n"
    )
    assert set().union(*(roots(n) for n in at_module_scope(tree))) == {"os", "av", "soxr"}
    private = ["import ray._raylet", "from ray._private import services", "from ray import _private"]
    private += ["import_module('ray._private.x')", "ray.util._hidden()", "run('from ray._raylet import G')"]
    assert all(private_ray_names(ast.parse(code)) for code in private)
    public = "import ray\nfrom ray.util.x import Y\nray.init(_temp_dir='ray')\nself._ray.get(ray.exceptions.RayError)"
    assert not private_ray_names(ast.parse(public))
    inside = LIBRARY / "model" / "rope.py"
    node = ast.parse(
        "from ..config import ModelConfig\nfrom . import kv_cache\nfrom .. import errors, __version__"
    ).body
    assert [parts_imported(inside, n) for n in node] == [{"config"}, {"model"}, {"errors", "__init__"}]
