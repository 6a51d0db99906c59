"""On an accelerator progress counts what it has finished, not what it was given; nothing takes long without a word."""

import dataclasses

import pytest
import torch
from engine.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job

from liveavatar.engine import local
from liveavatar.engine.local import LocalEngine, StageTimer
from liveavatar.errors import Cancelled
from liveavatar.events import GENERATING, LOADING_NETWORK, Event
from liveavatar.offload.streams import AsyncHostTensor
from liveavatar.planner import make_plan

CONFIG, BLOCKS = tiny_config(), 3


class Device:
    """A made-up accelerator: `at` counts what it has reached of what it was given."""

    def __init__(self) -> None:
        self.given, self.at = 0, 0

    def mark(self) -> "Mark":
        return Mark(self)


class Mark:
    """A CUDA event of such a device."""

    def __init__(self, device: Device):
        self._device, self._place = device, None

    def record(self, *_: object) -> None:
        self._device.given += 1
        self._place = self._device.given

    def query(self) -> bool:
        return self._place is not None and self._device.at >= self._place

    def synchronize(self) -> None:
        assert self.query(), "it would wait for ever"

    def elapsed_time(self, other: "Mark") -> float:
        return 1.0


def plan():
    return make_plan(tiny_effective(BLOCKS), CONFIG, model="tiny", stages="1x1")


def test_only_tasks_that_the_device_has_reached_are_finished(monkeypatch):
    device = Device()
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: device.mark())
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    stage = dataclasses.replace(plan().stages[0], device="cuda:0")
    timer = StageTimer(dataclasses.replace(plan(), stages=(stage,)))
    for _ in range(5):
        with timer.time(0):
            pass
    assert device.given == 10 and timer.finished == 0
    device.at = 4
    assert timer.finished == 2
    device.at = 10
    assert timer.finished == 5 and timer.seconds() == (0.005,)


class LateLatents:
    """Latents that arrive when the engine has called back so often meanwhile."""

    def __init__(self, calls: int):
        self.device, self.calls = Device(), calls
        self.events: list[Event] = []

    def copy_of(self, tensor: torch.Tensor) -> AsyncHostTensor:
        mark = self.device.mark()
        mark.record()
        self.begun = len(self.events)
        return AsyncHostTensor(tensor.cpu(), mark)

    def callback(self, event: Event) -> None:
        self.events.append(event)
        if len(self.events) > self.begun + self.calls:
            self.device.at = self.device.given


def test_the_callback_is_called_while_a_device_is_waited_for_and_may_end_that(monkeypatch):
    late = LateLatents(calls=3)
    late.begun = 10**6
    monkeypatch.setattr(local.AsyncHostTensor, "copy_of", late.copy_of)
    monkeypatch.setattr(local, "HEARTBEAT_SECONDS", 0.0)
    engine = LocalEngine(TinyComponents(CONFIG), plan())
    assert len(list(engine.run(tiny_job(CONFIG, tiny_effective(BLOCKS)), late.callback))) == BLOCKS
    generating = [event for event in late.events if event.phase == GENERATING]
    assert [event.done for event in generating] == sorted(event.done for event in generating)
    assert any(event.task is None for event in generating), "some came again"
    tasks = [event.task for event in generating if event.task is not None]
    assert len(tasks) == len(set(tasks)), "a task is told once"
    assert generating[-1].done == generating[-1].total

    before, late.events = late.events, []

    def cancel(event: Event) -> None:
        if event.phase == GENERATING and event.task is None:  # it came again, so the latent is waited for
            raise Cancelled("Cancelled.")
        late.events.append(event)

    with pytest.raises(Cancelled):
        list(engine.run(tiny_job(CONFIG, tiny_effective(BLOCKS)), cancel))
    assert 0 < len(late.events) < len(before)


def test_loading_is_told_as_it_goes_and_can_be_ended(monkeypatch):
    monkeypatch.setattr("liveavatar.events.HEARTBEAT_SECONDS", -1.0)
    events: list[Event] = []
    engine = LocalEngine(TinyComponents(CONFIG), plan())
    engine.load(events.append)
    shares = [event.share for event in events]
    assert {event.phase for event in events} == {LOADING_NETWORK}
    assert shares == sorted(shares) and shares[0] < 0.2 and shares[-1] > 0.9

    def cancel(event: Event) -> None:
        raise Cancelled("Cancelled.")

    engine.release()
    with pytest.raises(Cancelled):
        engine.load(cancel)
    assert not engine.loaded
    engine.load()
    assert engine.loaded
