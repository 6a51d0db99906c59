"""Videos made ahead of who watches them: the same to the bit, and as tame as those that are not."""

import contextlib
import functools
import gc
import random
import threading
import weakref
from collections.abc import Generator
from typing import Any

import pytest
import torch
from engine.test_prefetch_thread import PATIENCE, left_behind, unheard, until
from engine.tiny import TinyComponents, latents, tiny_config, tiny_effective, tiny_job
from fakes import random_tensors

from liveavatar.codec import vae_decoder
from liveavatar.config import BLOCK_FRAMES
from liveavatar.engine.local import LocalEngine
from liveavatar.engine.prefetch import PrefetchThread, all_on_accelerators
from liveavatar.errors import Cancelled
from liveavatar.events import Callback, Event
from liveavatar.planner import Plan, make_plan
from liveavatar.session import Session, VideoTask
from liveavatar.stage import Stage, StageInput
from liveavatar.storage import PLAIN, StorageConfig
from liveavatar.task_graph import Denoise, Task, paced_order
from liveavatar.vae.wan import build_vae

CONFIG = tiny_config()
BLOCKS = 6


def the_job() -> VideoTask:
    """Always the same numbers; a session closes its own."""
    return tiny_job(CONFIG, tiny_effective(BLOCKS))


@functools.cache
def expected() -> torch.Tensor:
    return latents(CONFIG, the_job())


def the_plan(stages: str = "1x1", storage: StorageConfig = PLAIN) -> Plan:
    return make_plan(tiny_effective(BLOCKS), CONFIG, model="tiny", stages=stages, storage=storage)


def engine(stages: str = "1x1", storage: StorageConfig = PLAIN) -> LocalEngine:
    return LocalEngine(TinyComponents(CONFIG), the_plan(stages, storage), prefetch=True)


class SteppedEngine(LocalEngine):
    """One whose tasks are noted when they begin, and may be made to fail."""

    def __init__(self) -> None:
        super().__init__(TinyComponents(CONFIG), the_plan(), prefetch=True)
        self.begun: list[Task] = []
        self.changed = threading.Condition()
        self.fails_at: Task | None = None
        self.settings: set[tuple[int, bool, bool]] = set()

    def wait_for(self, task: Task) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: task in self.begun, PATIENCE), f"{task} did not begin"

    def _stages(self, job: VideoTask, *given: Any) -> list[Stage]:
        stages = super()._stages(job, *given)
        for stage in stages:
            stage.run = functools.partial(self._step, stage.run)
        return stages

    def _step(self, run, task: Task, flow: StageInput) -> StageInput:
        with self.changed:
            self.begun.append(task)
            self.changed.notify_all()
        self.settings.add((torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        if task == self.fails_at:
            raise torch.cuda.OutOfMemoryError("no memory")
        return run(task, flow)


def session_of(an_engine: LocalEngine, **told) -> Session:
    return Session(an_engine, the_job(), **told)


@pytest.mark.parametrize("stages", ["1x1", "4x1", "2x3"])
@pytest.mark.parametrize("storage", [PLAIN, StorageConfig(kv_offload=True, offload_layers=1)], ids=str)
def test_the_bits_are_the_same(stages, storage):
    reports: list[Event] = []
    made = torch.cat(list(engine(stages, storage).run(the_job(), reports.append)), 1)
    assert torch.equal(made, expected())
    cut = the_plan(stages).partition
    assert [(r.task, r.stage, r.done) for r in reports if r.task is not None] == [
        (start.task, start.stage, done) for done, start in enumerate(paced_order(cut, BLOCKS), 1)
    ]
    assert not left_behind()


def test_it_is_for_accelerators_and_only_for_them():
    def plan(*devices: str) -> Plan:
        return make_plan(tiny_effective(BLOCKS), CONFIG, model="tiny", stages=f"1x{len(devices)}", devices=devices)

    assert all_on_accelerators(plan("cuda:0")) and all_on_accelerators(plan("cuda:0", "cuda:1"))
    assert not all_on_accelerators(plan("cpu")) and not all_on_accelerators(plan("cuda:0", "cpu"))
    heard = []
    plain = LocalEngine(TinyComponents(CONFIG), the_plan()).run(the_job(), lambda r: heard.append(left_behind()))
    assert len(list(plain)) == BLOCKS and not any(heard)


def test_the_thread_works_as_the_plan_says_and_the_caller_stays_as_it_is():
    stepped, before = SteppedEngine(), torch.get_num_threads()
    for _ in stepped.run(the_job()):
        assert not torch.is_inference_mode_enabled() and torch.get_num_threads() == before
    assert stepped.settings == {(1, True, False)}
    assert len(stepped.stage_seconds()) == 1 and stepped.stage_seconds()[0] > 0


def test_block_by_block_the_network_works_while_the_last_block_is_decoded():
    """The decoder of a block waits until the network is at the next one: it would wait for ever without the thread."""
    stepped = SteppedEngine()
    decoded = []

    def open_decoder(motion, callback):
        def decode(block: torch.Tensor) -> torch.Tensor:
            if len(decoded) + 1 < BLOCKS:
                stepped.wait_for(Denoise(len(decoded) + 1, 0, 0))
            decoded.append(block)
            return torch.zeros(3, BLOCK_FRAMES, 64, 64)

        return decode

    with session_of(stepped, open_decoder=open_decoder) as session:
        assert sum(chunk.shape[1] for chunk in session.frames) == session.job.resolved.frames
    assert torch.equal(torch.cat(decoded, 1), expected())


def test_a_video_at_rest_is_one_block_ahead_and_ends_with_its_session():
    stepped = SteppedEngine()
    session = session_of(stepped)
    assert not stepped.begun
    next(iter(session.latents))
    stepped.wait_for(Denoise(1, 3, 0))
    threading.Event().wait(0.2)
    assert stepped.begun[-1] == Denoise(1, 3, 0) and session.latents.produced == 1
    session.latents.cancel()
    assert not left_behind()
    assert torch.equal(torch.cat(list(session.latents), 1), expected()), "from the beginning"
    session.close()


def test_two_who_watch_one_video_share_the_thread():
    with session_of(engine()) as session:
        seen: list[list[torch.Tensor]] = [[], []]

        def watch(mine: list[torch.Tensor]) -> None:
            for block in session.latents:
                mine.append(block)
                assert len(left_behind()) <= 1

        threads = [threading.Thread(target=watch, args=(mine,)) for mine in seen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert all(torch.equal(torch.cat(mine, 1), expected()) for mine in seen)


def test_cancelling_by_progress_stops_the_network():
    stepped = SteppedEngine()

    def stop(report: Event) -> None:
        assert threading.current_thread() is threading.main_thread()
        if report.task == Denoise(1, 1, 0):
            raise Cancelled("Enough.")

    with session_of(stepped, callback=stop) as session:
        with pytest.raises(Cancelled, match="Enough"):
            list(session.latents)
        assert not left_behind()
        assert all(task.block <= 2 for task in stepped.begun if isinstance(task, Denoise))


def test_an_error_of_the_network_keeps_its_type():
    stepped = SteppedEngine()
    stepped.fails_at = Denoise(2, 0, 0)
    blocks = stepped.run(the_job())
    assert torch.equal(torch.cat([next(blocks), next(blocks)], 1), expected()[:, :6])
    with pytest.raises(torch.cuda.OutOfMemoryError, match="no memory"):
        next(blocks)
    assert not left_behind()


def test_a_session_that_is_forgotten_takes_the_thread_along():
    session = session_of(engine(), open_decoder=lambda motion, callback: lambda block: torch.zeros(3, 12, 64, 64))
    session.callback = functools.partial(setattr, session, "latest")  # a cycle, as applications make them
    next(iter(session.frames))
    assert left_behind()
    gone = weakref.ref(session)
    del session
    gc.collect()
    assert gone() is None and not left_behind()


def test_seconds_may_be_read_while_the_thread_works():
    an_engine = engine()
    blocks = an_engine.run(the_job(), lambda report: an_engine.stage_seconds())
    read = [an_engine.stage_seconds()[0] for _ in blocks]
    assert read == sorted(read) and read[0] > 0


def test_many_videos_broken_off_anywhere_leave_nothing():
    draw, before = random.Random(3), set(threading.enumerate())
    components = TinyComponents(CONFIG)
    for _ in range(50):
        stop_at, how = draw.randrange(0, 26), draw.choice(["close", "raise", "forget", "cancel"])

        def heard(report: Event, at: int = stop_at, by: str = how) -> None:
            if by == "raise" and report.done >= at:
                raise Cancelled("Enough.")

        session = Session(LocalEngine(components, the_plan(), prefetch=True), the_job(), callback=heard)
        blocks = iter(session.latents)
        with contextlib.suppress(Cancelled):
            for _ in range(stop_at // 4):
                next(blocks, None)
        if how == "cancel":
            session.latents.cancel()
        elif how != "forget":
            session.latents.close()
        del blocks, session
    gc.collect()
    until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_bits_are_the_same_on_a_gpu_that_decodes_meanwhile():
    vae = build_vae(base_dim=4)
    vae.load_state_dict(random_tensors(lambda: build_vae(base_dim=4), 7))
    vae = vae.to("cuda:0")
    seen = []
    for ahead in (False, True):
        plan = make_plan(tiny_effective(BLOCKS), CONFIG, model="tiny", stages="2x1", devices=("cuda:0",))
        an_engine, job = LocalEngine(TinyComponents(CONFIG), plan, prefetch=ahead), the_job()
        decode = vae_decoder(vae, job.conditioning.motion, 1)
        seen.append([(block, decode(block)) for block in an_engine.run(job)])
    for (plain, pictures), (ahead_of, beside) in zip(*seen, strict=True):
        assert torch.equal(plain, ahead_of) and torch.equal(pictures, beside)


def test_the_thread_has_as_many_cpu_threads_as_who_pulls():
    """Whatever another thread of the process chose last, which is what new threads begin with."""

    def make(callback: Callback) -> Generator[int, None, None]:
        yield torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        other = threading.Thread(target=torch.set_num_threads, args=(1,))
        other.start()
        other.join()
        assert torch.get_num_threads() == 3
        assert list(PrefetchThread(make, unheard)) == [3]
    finally:
        torch.set_num_threads(before)
