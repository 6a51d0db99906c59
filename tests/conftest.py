"""What every test starts from: one thread, no network, reproducible examples, Ctrl-C as at a terminal."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

# What a script starts in the background ignores Ctrl-C, and so would all processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What else the machine has to do is told in receipts, and is no matter of tests.
if hasattr(os, "getloadavg"):
    os.getloadavg = lambda: (0.0, 0.0, 0.0)

# One thread: bit equality holds at equal thread counts, and tiny tensors are quicker so.
torch.set_num_threads(1)

for profile, examples in (("dev", 10), ("all", 100)):
    hypothesis.settings.register_profile(
        profile, deadline=None, max_examples=examples, derandomize=bool(os.environ.get("CI"))
    )
hypothesis.settings.load_profile("dev")  # make test-all takes the other

PROJECT = Path(__file__).parents[1]

WORKER_TESTS = (
    "distributed/",
    "bench/test_pipeline.py",
    "cli/test_cluster.py",
    "cli/test_workers.py",
    "golden/test_workers.py",
    "gpu/",
    "nodes/test_run.py",
    "offload/test_host_weights.py",
)
"""Tests that start worker processes, or look at what all processes of the machine share, its GPU too: never two at a
time."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in parallel, those of a file stay together, and those that start workers too."""
    tests = Path(__file__).parent
    for item in items:
        file = item.path.relative_to(tests).as_posix()
        item.add_marker(pytest.mark.xdist_group("workers" if file.startswith(WORKER_TESTS) else file))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real portraits and speech that lies beside the project on a developer's machine."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real portraits and voices in ../shared/data beside the project")
    return folder


@pytest.fixture(scope="module")
def mini_network() -> dict[str, Any]:
    """The tensors of the miniature's transformer by their names, as its file has them."""
    from weights.gguf_files import mini_transformer

    return mini_transformer()


@pytest.fixture
def mini_folder(tmp_path: Path) -> Path:
    """A copy of the miniature, for a test to change."""
    from liveavatar.components import MINI_FOLDER

    return Path(shutil.copytree(MINI_FOLDER, tmp_path / "mini"))
