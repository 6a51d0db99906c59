"""The pack's sources: found by the Manager, quick to import, within the registry's rules, thin towards ComfyUI."""

import ast
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import frozen
import pytest
from fake_comfy import PROJECT

NODES = sorted((PROJECT / "nodes").glob("*.py"))
SHIPPED = [PROJECT / "__init__.py", *NODES, *sorted((PROJECT / "liveavatar").rglob("*.py"))]
SCRIPTS = sorted((PROJECT / "web" / "js").glob("*.js"))
HOST = {"comfy", "comfy_execution", "comfy_extras", "folder_paths", "server", "nodes", "execution"}
TOUCH_HOST = {"host.py", "patcher.py", "paths.py", "convert.py"}
AT_MODULE_SCOPE = {"comfy_api", "torch", "numpy", "safetensors", "einops"}
HEAVY = {"diffusers", "transformers", "accelerate", "av", "soxr", "ray", "torchaudio", "torchvision", "scipy"}


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(tree: ast.AST) -> Iterator[tuple[int, str, int]]:
    """(line, first name, level) of every import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0], 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, (node.module or "").split(".")[0], node.level


def module_scope(tree: ast.Module) -> ast.Module:
    """The statements that run at import; functions are left out."""
    kept = [n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    kept = [n for n in kept if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))]
    for node in kept:
        if isinstance(node, ast.ClassDef):
            node.body = [n for n in node.body if not isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return ast.Module(kept, [])


def scanned() -> dict[str, str]:
    """Node id -> class name as ComfyUI Manager's reader of sources finds them: direct subclass, literal id."""
    found = {}
    for path in NODES:
        for cls in (n for n in parse(path).body if isinstance(n, ast.ClassDef)):
            if "io.ComfyNode" not in map(ast.unparse, cls.bases):
                continue
            schema = next(f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "define_schema")
            calls = [c for c in ast.walk(schema) if isinstance(c, ast.Call) and ast.unparse(c.func) == "io.Schema"]
            ids = [k.value for c in calls for k in c.keywords if k.arg == "node_id"]
            assert len(ids) == 1 and isinstance(ids[0], ast.Constant), f"{cls.name}: node_id is no literal"
            found[ids[0].value] = cls.name
    return found


def test_the_manager_finds_every_node_by_reading():
    listed = next(n for n in parse(PROJECT / "nodes" / "__init__.py").body if isinstance(n, ast.AnnAssign))
    assert ast.unparse(listed.target) == "NODES"
    assert set(scanned()) == set(frozen.read())
    assert sorted(scanned().values()) == sorted(ast.unparse(e) for e in listed.value.elts)


def test_there_is_one_registration():
    """With NODE_CLASS_MAPPINGS, even empty, ComfyUI would never ask for the entry point."""
    for path in [PROJECT / "__init__.py", *NODES]:
        assert "NODE_CLASS_MAPPINGS" not in path.read_text(encoding="utf-8")
    root = (PROJECT / "__init__.py").read_text(encoding="utf-8")
    assert 'WEB_DIRECTORY = "./web"' in root
    assert "\nweb = " not in (PROJECT / "pyproject.toml").read_text(encoding="utf-8"), "scripts would load twice"


@pytest.mark.parametrize("path", NODES, ids=name_of)
def test_nodes_reach_the_library_relatively_and_comfyui_through_four_files(path):
    for line, name, level in imports(parse(path)):
        assert level or name != "liveavatar", f"{name_of(path)}:{line}: from ..liveavatar"
        if level == 0 and name in HOST:
            assert path.name in TOUCH_HOST, f"{name_of(path)}:{line} touches {name}; only {sorted(TOUCH_HOST)} may"


@pytest.mark.parametrize("path", NODES, ids=name_of)
def test_nodes_import_only_light_things_at_start(path):
    allowed = AT_MODULE_SCOPE | set(sys.stdlib_module_names) | (HOST if path.name in TOUCH_HOST else set())
    for line, name, level in imports(module_scope(parse(path))):
        assert level or name in allowed, f"{name_of(path)}:{line} imports {name} at module scope"


IMPORT_ONCE = """
import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch, fake_comfy, fake_host
with tempfile.TemporaryDirectory() as folder:
    fake_host.Host(Path(folder))
    start = time.perf_counter()
    fake_comfy.load_pack()
    print(f"{time.perf_counter() - start:.2f}", *{name.split(".")[0] for name in sys.modules})
"""


def test_importing_the_pack_loads_nothing_heavy():
    """Under one second beyond torch; told, not asserted, because machines differ."""
    command = [sys.executable, "-c", IMPORT_ONCE, str(Path(__file__).parent)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    seconds, *loaded = result.stdout.split()
    print(f"the pack is imported in {seconds} s beyond torch")
    assert not set(loaded) & HEAVY, f"importing the pack loads {sorted(set(loaded) & HEAVY)}"


def test_the_pack_stays_out_of_the_way_where_there_is_no_comfyui():
    code = "import importlib.util as u; s = u.spec_from_file_location('p', '__init__.py'); m = u.module_from_spec(s)"
    code += "; s.loader.exec_module(m); print(hasattr(m, 'comfy_entrypoint'), hasattr(m, 'WEB_DIRECTORY'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["False", "False"], result.stderr


FORBIDDEN = re.compile(
    r"(?<![\w.])(?:exec|eval)\(|os\.system|shell\s*=\s*True|\bpip3?\s+install|ensurepip|[\"']pip[\"']"
    r"|weights_only\s*=\s*False|trust_remote_code(?!=False)|pickle\.loads?\(|base64"
)


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_the_registrys_forbidden_words_are_absent(path):
    text = path.read_text(encoding="utf-8")
    found = [f"line {text.count(chr(10), 0, m.start()) + 1}: {m.group()}" for m in FORBIDDEN.finditer(text)]
    assert not found, f"{name_of(path)}: {found}"


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_parse(path, tmp_path):
    node = shutil.which("node")
    if not node:
        pytest.skip("no node here to read JavaScript")
    module = shutil.copy(path, tmp_path / "script.mjs")  # by its name node knows that it is a module
    result = subprocess.run([node, "--check", module], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_use_cores_two_and_nothing_from_elsewhere(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"""(?:\bfrom|\bimport)\s*\(?\s*["']([^"']+)["']""", text)
    reached = {posixpath.normpath(f"/extensions/{name_of(path).replace('web', 'pack', 1)}/../{name}") for name in found}
    own = {f"/extensions/pack/js/{one.name}" for one in SCRIPTS}
    assert reached <= {"/scripts/app.js", "/scripts/api.js"} | own, found
    assert not re.search(r"https?://(?!www\.w3\.org/)", text), "a remote address"


PUBLISHED = (
    "__init__.py",
    "nodes/__init__.py",
    "liveavatar/mini/model/config.json",
    "liveavatar/mini/assets/voice.wav",
    "web/js/liveavatar.js",
    "web/js/live.js",
    "liveavatar/live/page/client.js",
    "web/docs/LiveAvatarGenerate/en.md",
    "locales/zh/nodeDefs.json",
    "workflows/01_quickstart.json",
    "workflows/api/quickstart.json",
    "workflows/01_quickstart.jpg",
    "subgraphs/Talking Avatar (Live Avatar).json",
    "pyproject.toml",
    "requirements.txt",
    "README.md",
    "LICENSE",
)
LEFT_OUT = ("tests/nodes/schema.json", "tools/workflows.py", "docs/demo.png", ".ci/run", "Makefile", ".gitignore")


def test_the_archive_has_what_users_need_and_no_more():
    git = shutil.which("git")
    if not git:
        pytest.skip("git reads the patterns, and there is none")
    command = [git, "-c", f"core.excludesFile={PROJECT / '.comfyignore'}", "check-ignore", "--no-index", "--stdin"]
    names = "\n".join([*PUBLISHED, *LEFT_OUT])
    result = subprocess.run(command, cwd=PROJECT, input=names, capture_output=True, text=True)
    if result.returncode > 1:
        pytest.skip("not a git checkout")
    assert sorted(result.stdout.split()) == sorted(LEFT_OUT)
