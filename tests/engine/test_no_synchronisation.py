"""No task waits for its device: nothing asks for a number that is computed there, and what goes there goes beside.

Here the device is one whose numbers nobody can read ("meta"): asking for one raises. What goes to it is noted; only
lists that become tensors there are not, which the test on a GPU sees.
"""

import dataclasses

import pytest
import torch
from engine.tiny import TinyComponents, tiny_effective, tiny_job
from torch.utils._python_dispatch import TorchDispatchMode

from liveavatar.config import UNTRAINED, ModelConfig
from liveavatar.engine.local import LocalEngine
from liveavatar.model import quantize
from liveavatar.model.transformer import CausalS2VTransformer, ModelSlice, empty_transformer
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.planner import make_plan
from liveavatar.session import VideoTask
from liveavatar.stage import InitialInputs, Stage, StageConditioning, StageInput
from liveavatar.storage import PLAIN, StorageConfig
from liveavatar.task_graph import Partition, Task, followers, is_first, paced_order

BLOCKS = 6
CONFIG = dataclasses.replace(UNTRAINED, num_layers=3, audio_inject_layers=(0, 2))
CUT = Partition.even(1, 1, 4, CONFIG.num_layers)


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


def stage_on(
    net: CausalS2VTransformer, job: VideoTask, device: torch.device, dtype: torch.dtype, storage: StorageConfig
) -> Stage:
    schedule, effective = NoiseSchedule.flow_matching(4), job.resolved
    rows, columns = (n // 2 for n in effective.latent_size)
    conditions = StageConditioning(
        rows=rows,
        columns=columns,
        schedule=schedule,
        seed=effective.seed,
        distance=job.distance,
        prompt=net.embed_text(job.conditioning.prompt),
        time=net.embed_timesteps([*schedule.timesteps, 0.0]),
        motion=job.conditioning.motion,
        audio=lambda block: net.embed_audio(job.conditioning.audio.block(block)),
    )
    return Stage(net, range(4), conditions, device, dtype, storage)


def all_tasks(stage: Stage, job: VideoTask, dtype: torch.dtype) -> StageInput:
    """Every task of the video; what the last one left."""
    origin = InitialInputs(job.conditioning.reference, job.resolved.seed, job.resolved.latent_size, dtype)
    flows: dict[Task, StageInput] = {}
    left = None
    for start in paced_order(CUT, BLOCKS):
        flow = origin.stage_input(start.task) if is_first(start.task) else flows.pop(start.task)
        left = stage.run(start.task, flow)
        for follower in followers(CUT, BLOCKS, start.task):
            flows[follower] = left.for_follower(start.task, follower)
    assert left is not None
    return left


def network_on_meta(config: ModelConfig, storage: StorageConfig, dtype: torch.dtype) -> CausalS2VTransformer:
    net = empty_transformer(config, ModelSlice.whole(config), storage.weights).requires_grad_(False)
    for module in net.modules():
        for name, held in module._parameters.items():
            if held is not None and held.is_floating_point() and held.itemsize > 1 and not name.endswith("_scale"):
                module._parameters[name] = torch.nn.Parameter(held.to(dtype), requires_grad=False)
    return net


@pytest.mark.parametrize(
    ("storage", "computes"),
    [
        pytest.param(PLAIN, False, id="plain"),
        pytest.param(StorageConfig("fp8", "fp8"), False, id="fp8, widened"),
        pytest.param(StorageConfig("fp8"), True, id="fp8, multiplied as it is"),
        pytest.param(StorageConfig("fp8-tensor"), True, id="fp8 by tensor, multiplied as it is"),
    ],
)
def test_no_task_needs_to_know_a_number(
    storage: StorageConfig, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, dtype, config = torch.device("meta"), torch.bfloat16, CONFIG
    for by_row in (False, True):
        monkeypatch.setitem(quantize.fp8_trials, (device, by_row, True), "" if computes else "not in this test")
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
    [PLAIN, StorageConfig("fp8", "fp8"), StorageConfig(kv_offload=True, offload_text_kv=True, offload_layers=3)],
    ids=str,
)
def test_a_gpu_is_never_waited_for(storage: StorageConfig) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here that could be waited for")
    config, effective, dtype = CONFIG, tiny_effective(BLOCKS), torch.bfloat16
    job = tiny_job(config, effective)
    plan = make_plan(
        effective, config, model="tiny", devices=("cuda:0",), dtype="bfloat16", storage=storage, stages="1x1"
    )
    engine = LocalEngine(TinyComponents(config), plan)
    engine.load()
    with engine._inference():
        (stage,) = engine._stages(job)
        all_tasks(stage, job, dtype)  # kernels are loaded and memory is taken at first use
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            all_tasks(stage, job, dtype)
        finally:
            torch.cuda.set_sync_debug_mode("default")
