"""No task waits for its device: nothing asks for a number that is computed there, and what goes there goes beside.

Here the device is one whose numbers nobody can read ("meta"): asking for one raises. What goes to it is noted; only
lists that become tensors there are not, which the test on a GPU sees.
"""

import dataclasses

import pytest
import torch
from session.tiny import TinyComponents, tiny_effective, tiny_job
from torch.utils._python_dispatch import TorchDispatchMode

from liveavatar.config import UNTRAINED, ModelConfig
from liveavatar.engines.local import LocalEngine
from liveavatar.model import linear
from liveavatar.model.transformer import CausalS2VTransformer, Part, empty_transformer
from liveavatar.pipeline import Cut, Task, begins, followers, paced_order
from liveavatar.planner import make_plan
from liveavatar.schedule import Schedule
from liveavatar.session import Job
from liveavatar.stage import Conditions, Flow, Origin, Stage
from liveavatar.storage import PLAIN, Storage

BLOCKS = 6
CONFIG = dataclasses.replace(UNTRAINED, num_layers=3, audio_inject_layers=(0, 2))
CUT = Cut.even(1, 1, 4, CONFIG.num_layers)


class Sent(TorchDispatchMode):
    """Notes copies from the CPU to a device: bytes, and whether the host goes on meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[tuple[int, bool]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("to", "_to_copy", "copy_"):
            names = (argument.name for argument in func._schema.arguments)
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            source = given.get("src", given["self"])
            if source.device.type == "cpu" != out.device.type:
                self.copies.append((source.nbytes, bool(given.get("non_blocking"))))
        return out


def stage_on(net: CausalS2VTransformer, job: Job, device: torch.device, dtype: torch.dtype, storage: Storage) -> Stage:
    schedule, effective = Schedule.of(4), job.effective
    rows, columns = (n // 2 for n in effective.latent_size)
    conditions = Conditions(
        rows=rows,
        columns=columns,
        schedule=schedule,
        seed=effective.seed,
        distance=job.distance,
        text=net.condition_text(job.material.context),
        time=net.condition_time([*schedule.timesteps, 0.0]),
        motion=job.material.motion,
        audio=lambda block: net.condition_audio(job.material.audio.block(block)[None]),
    )
    return Stage(net, range(4), conditions, device, dtype, storage)


def all_tasks(stage: Stage, job: Job, dtype: torch.dtype) -> Flow:
    """Every task of the video; what the last one left."""
    origin = Origin(job.material.reference, job.effective.seed, job.effective.latent_size, dtype)
    flows: dict[Task, Flow] = {}
    left = None
    for start in paced_order(CUT, BLOCKS):
        flow = origin.flow(start.task) if begins(start.task) else flows.pop(start.task)
        left = stage.run(start.task, flow)
        for follower in followers(CUT, BLOCKS, start.task):
            flows[follower] = left.handed(start.task, follower)
    assert left is not None
    return left


def network_on_meta(config: ModelConfig, storage: Storage, dtype: torch.dtype) -> CausalS2VTransformer:
    net = empty_transformer(config, Part.whole(config), storage.weights).requires_grad_(False)
    for module in net.modules():
        for name, held in module._parameters.items():
            if held is not None and held.is_floating_point() and held.itemsize > 1 and not name.endswith("_scale"):
                module._parameters[name] = torch.nn.Parameter(held.to(dtype), requires_grad=False)
    return net


@pytest.mark.parametrize(
    ("storage", "computes"),
    [
        pytest.param(PLAIN, False, id="plain"),
        pytest.param(Storage("fp8", "fp8"), False, id="fp8, widened"),
        pytest.param(Storage("fp8"), True, id="fp8, multiplied as it is"),
        pytest.param(Storage("fp8-tensor"), True, id="fp8 by tensor, multiplied as it is"),
    ],
)
def test_no_task_needs_to_know_a_number(storage: Storage, computes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device, dtype, config = torch.device("meta"), torch.bfloat16, CONFIG
    for by_row in (False, True):
        monkeypatch.setitem(linear._trials, (device, by_row, True), "" if computes else "not in this test")
    job = tiny_job(config, tiny_effective(BLOCKS))
    with torch.inference_mode():
        stage = stage_on(network_on_meta(config, storage, dtype), job, device, dtype, storage)
        with Sent() as sent:
            left = all_tasks(stage, job, dtype)
    assert left.latent.device == device and left.latent.shape == (16, 3, 8, 8)
    noise = 16 * 3 * 8 * 8 * dtype.itemsize
    assert sum(size == noise for size, _ in sent.copies) >= BLOCKS, "the noise of every block, at least, is sent"
    assert all(beside for _, beside in sent.copies)


def test_the_watch_sees_what_waits() -> None:
    device = torch.device("meta")
    numbers = torch.ones(3, device=device)
    for read in (lambda: numbers.sum().item(), lambda: bool(numbers.any()), numbers.cpu, numbers.tolist):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
    for inference in (False, True):
        with torch.inference_mode(inference), Sent() as sent:
            torch.ones(3).to(device)
            torch.ones(3).to(device, non_blocking=True)
            numbers.copy_(torch.ones(3))
            torch.ones(3).to(torch.float16).to(device=device, dtype=torch.float32)
        assert sent.copies == [(12, False), (12, True), (12, False), (6, False)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "storage",
    [PLAIN, Storage("fp8", "fp8"), Storage(keys_home="host", prompt_weights="leave", streamed=3)],
    ids=str,
)
def test_a_gpu_is_never_waited_for(storage: Storage) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here that could be waited for")
    config, effective, dtype = CONFIG, tiny_effective(BLOCKS), torch.bfloat16
    job = tiny_job(config, effective)
    plan = make_plan(
        effective, config, model="tiny", devices=("cuda:0",), dtype="bfloat16", storage=storage, stages="1x1"
    )
    engine = LocalEngine(TinyComponents(config), plan)
    engine.load()
    with engine._working():
        (stage,) = engine._stages(job)
        all_tasks(stage, job, dtype)  # kernels are loaded and memory is taken at first use
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            all_tasks(stage, job, dtype)
        finally:
            torch.cuda.set_sync_debug_mode("default")
