"""Worker processes that read a model's files give the original's numbers: a pose, and two speakers in one picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fakes
import pytest
from golden.cases import Case, cases
from golden.engine import assert_blocks_match, pose_task, speakers_task
from golden.rollout import config_of

from liveavatar.components import open_components
from liveavatar.config import BLOCK_LATENTS
from liveavatar.distributed import RayBackend
from liveavatar.placement import Placement
from liveavatar.planner import make_plan
from liveavatar.session import VideoTask
from liveavatar.weights import folder as names

CUTS = ["1x2", "2x1"]
"""Two workers: tokens go to and fro between them, or latents go on."""
RECORDED = [
    pytest.param(*case.values, prefix, task_of, id=f"{case.id}-{prefix}")
    for prefix, task_of in (("A", pose_task), ("C", speakers_task))
    for case in cases("dit", "dit_weights", holds=lambda case, key=f"{prefix}.x0.0": key in case.keys)
]


@pytest.fixture(scope="module")
def backend() -> Iterator[RayBackend]:
    """One pool of workers for all cases; they end with it, and so does the noise they were given."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    backend = RayBackend(Placement(("cpu",), threads=1), restarts=0)
    yield backend
    backend.release()


def write_model(case: Case, path: Path) -> Path:
    """A model folder in the official layout with the case's transformer; what stages do not read has random weights."""
    weights, values = case.sibling("dit_weights"), case.info["config"]["model"]
    config = config_of(values, weights)
    path.mkdir()
    shutil.copyfile(weights.folder / "dit_weights.safetensors", path / names.TRANSFORMER_FILE)
    (path / "config.json").write_text(json.dumps({**values, "audio_layers": config.audio_layers}))
    fakes.write_vae(path / names.VAE_FILE, seed=7)
    fakes.write_text_encoder(path, config, seed=7)
    fakes.write_audio_encoder(path / names.AUDIO_FOLDER, config, seed=7)
    return path


def give_noise(backend: RayBackend, case: Case) -> None:
    """Let the workers that are there begin with the recorded noise, which no seed draws.

    A worker has no call for that, so it is done as `monkeypatch` does it here: by a function that Ray runs in it.
    """
    import ray

    def take(_, noise, length: int) -> None:  # defined here so that Ray sends its code: workers have no tests
        import torch

        import liveavatar.stage

        given = torch.from_numpy(noise.copy())
        liveavatar.stage.block_noise = lambda seed, block, *_: given[:, block * length : (block + 1) * length]

    noise = case["in.noise"].numpy()
    ray.get([worker.actor.__ray_call__.remote(take, noise, BLOCK_LATENTS) for worker in backend.pool.workers])


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("case", "prefix", "task_of"), RECORDED)
def test_workers_give_the_numbers_of_the_original(
    backend: RayBackend, tmp_path: Path, case: Case, prefix: str, task_of: Callable[[Case], VideoTask], cut: str
) -> None:
    components, task = open_components(write_model(case, tmp_path / "model"), lora="none"), task_of(case)
    plan = make_plan(task.resolved, components.config, model=components.name, stages=cut)
    engine = backend.engine(components, plan)
    engine.load()
    give_noise(backend, case)
    assert_blocks_match(case, engine.run(task), prefix)
    assert len(set(backend.worker_pids)) == 2
