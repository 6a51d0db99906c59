"""Ray's own process on this machine (raylet) is lost: that is no end of a backend."""

import os

import pytest
from distributed.videos import Video

from liveavatar.distributed import RayBackend, WorkerError

psutil = pytest.importorskip("psutil")


@pytest.mark.slow
def test_ray_is_started_anew_when_its_process_here_is_lost(backend: RayBackend) -> None:
    video = Video(1)
    video.engine(backend, "1x2").load()
    before, folder = backend.worker_pids, backend.pool.resources.folder
    for process in psutil.Process(os.getpid()).children():
        if process.name() == "raylet" and str(folder) in " ".join(process.cmdline()):
            process.kill()
    with pytest.raises(WorkerError, match="was lost"):
        video.engine(backend, "1x3").load()  # no third one can be started; Ray needs ten seconds to notice
    assert video.is_made_by(backend, "1x3")
    assert backend.pool.resources.folder != folder and not set(before) & set(backend.worker_pids)
