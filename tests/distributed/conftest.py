"""One backend for all tests of workers, because starting Ray and importing torch anew takes seconds.

It replaces no worker while a video is made: `test_resume` allows that for itself.
"""

from collections.abc import Iterator

import pytest

from liveavatar.distributed import RayBackend
from liveavatar.placement import Placement


@pytest.fixture(scope="session")
def backend() -> Iterator[RayBackend]:
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    backend = RayBackend(Placement(("cpu",), threads=1), restarts=0)
    yield backend
    backend.release()
