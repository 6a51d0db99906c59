"""What lies on disk comes back bit for bit, memory stays flat, and nothing is left behind."""

import gc
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from streams.producers import Producer

from liveavatar.errors import OutputError
from liveavatar.streams import LatentStream

PROJECT = Path(__file__).parents[2]


def test_a_dropped_stream_closes_its_producer_and_its_file():
    gc.collect()  # what other tests left
    producer = Producer(3)
    stream = LatentStream(3, producer)
    blocks = iter(stream)
    next(blocks)
    handles = len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else None
    del blocks, stream
    gc.collect()
    assert producer.open == 0
    if handles is not None:
        assert len(list(Path("/proc/self/fd").iterdir())) == handles - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_blocks_come_back_bit_equal_in_their_dtype(dtype):
    made = [torch.randn(16, 3, 4, 6).to(dtype) for _ in range(3)]
    made[1] = made[1].transpose(2, 3).contiguous().transpose(2, 3)
    stream = LatentStream(3, lambda: iter(made))
    with torch.inference_mode():
        first = list(stream)
    again = list(stream)
    for block, a, b in zip(made, first, again, strict=True):
        assert a.dtype == dtype and torch.equal(a, block) and torch.equal(b, block)
    again[0].zero_()
    assert torch.equal(next(iter(stream)), made[0])


def test_an_unusable_spool_folder_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="temporary"):
        list(LatentStream(1, Producer(1), tmp_path / "missing"))


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from liveavatar.errors import OutputError
from liveavatar.streams import LatentStream
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
stream = LatentStream(20, lambda: (torch.full((16, 3, 8, 8), float(i)) for i in range(20)), Path(sys.argv[1]))
try:
    list(stream)
except OutputError as e:
    assert "cannot be written" in str(e) and stream.produced == 0, e
else:
    sys.exit("no error")
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
assert [int(b.max()) for b in stream] == list(range(20))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on file sizes")
def test_a_full_disk_is_an_output_error_and_the_stream_reopens(tmp_path):
    assert _run(FULL_DISK, tmp_path) == 0


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from liveavatar.streams import LatentStream
blocks = iter(LatentStream(3, lambda: (torch.zeros(16, 3, 8, 8) for _ in range(3)), Path(sys.argv[1])))
next(blocks)
os.kill(os.getpid(), signal.SIGKILL)
"""
EXITS = """
import sys, torch
from pathlib import Path
from liveavatar.streams import LatentStream
def produce():
    try:
        while True:
            yield torch.zeros(16, 3, 8, 8)
    finally:
        Path(sys.argv[1], "closed").touch()
stream = LatentStream(3, produce, Path(sys.argv[1]))
blocks = iter(stream)
next(blocks)
keep = sys.modules["liveavatar.streams"].kept = [stream, blocks]
keep.append(keep)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals")
@pytest.mark.parametrize(
    ("program", "code", "left"), [(KILLED, -9, []), (EXITS, 0, ["closed"])], ids=["kill -9", "exit"]
)
def test_a_process_that_ends_leaves_no_spool(tmp_path, program, code, left):
    assert _run(program, tmp_path) == code
    assert [p.name for p in tmp_path.iterdir()] == left


def test_memory_stays_flat():
    size = 16 * 3 * 32 * 32 * 4
    stream = LatentStream(200, lambda: (torch.zeros(16, 3, 32, 32) for _ in range(200)), None)
    before = _resident()
    tracemalloc.start()
    for _ in stream:
        pass
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < size and _resident() - before < 20 * size


def _run(program: str, folder: Path) -> int:
    command = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(command, timeout=60, check=False, cwd=PROJECT).returncode


def _resident() -> int:
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
