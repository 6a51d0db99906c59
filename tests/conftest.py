"""What every test starts from: one thread, no network, reproducible examples, Ctrl-C as at a terminal."""

import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

# What a script starts in the background ignores Ctrl-C, and so would all processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread: bit equality holds at equal thread counts, and tiny tensors are quicker so.
torch.set_num_threads(1)

hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "house")

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder of real portraits and speech that lies beside the project on a developer's machine."""
    folder = PROJECT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real portraits and voices in ../shared/data beside the project")
    return folder
