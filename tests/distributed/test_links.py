"""A link between two stages: control and tensors keep their order, whatever carries the tensors."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from liveavatar.device_names import Machine
from liveavatar.distributed import links
from liveavatar.distributed.links import ABORT, END, Link, ReceiveThread, SendThread, TensorShape
from liveavatar.distributed.topology import Endpoint, link_specs, uses_nccl
from liveavatar.stage import StageInput
from liveavatar.task_graph import Denoise, Partition, Prefill, Task


class Belt:
    """A payload that hands tensors over by itself, as NCCL does: nothing of it is on the control group.

    It keeps what it was asked, and hands over only to an end that asked for just these forms.
    """

    def __init__(self) -> None:
        self.there: list[torch.Tensor] = []
        self.asked: list[TensorShape] = []
        self.changed = threading.Condition()
        self.given_up = False

    def send(self, tensors: Sequence[torch.Tensor]) -> None:
        with self.changed:
            self.there += tensors
            self.changed.notify_all()

    def receive(self, forms: Sequence[TensorShape]) -> list[torch.Tensor]:
        with self.changed:
            self.asked += forms
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(self.there) >= len(forms) or self.given_up, 30)
            if self.given_up:
                raise RuntimeError("the transfer was given up")
            taken = [self.there.pop(0) for _ in forms]
        assert [(tuple(t.shape), t.dtype) for t in taken] == list(forms)
        return taken

    def abort(self) -> None:
        with self.changed:
            self.given_up = True
            self.changed.notify_all()


def ends() -> tuple[Link, Link]:
    """Both ends of a link through CPU memory."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    made: dict[bool, Link] = {}

    def connect(sends: bool) -> None:
        own = dist.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
        made[sends] = Link.connect(own, "0-1", sends, "127.0.0.1")

    other = threading.Thread(target=connect, args=(False,))
    other.start()
    connect(True)
    other.join()
    return made[True], made[False]


def flows() -> list[tuple[Task, StageInput]]:
    numbers = torch.Generator().manual_seed(3)
    latent = torch.randn(16, 3, 4, 4, generator=numbers)
    tokens = torch.randn(12, 8, generator=numbers).bfloat16()
    return [
        (Prefill(0, 0, 1), StageInput(latent[:, :1])),
        (Denoise(0, 0, 1), StageInput(latent, tokens)),
        (Denoise(0, 1, 0), StageInput(latent.half())),
        (Denoise(1, 3, 1), StageInput(-latent, -tokens)),
    ]


def carried(sender: Link, receiver: Link, word: int) -> tuple[list[tuple[Task, StageInput]], bool]:
    """What arrives of `flows`, and whether the run was broken off."""
    got: list[tuple[Task, StageInput]] = []
    broken: list[bool] = []
    lost: list[BaseException] = []
    incoming = ReceiveThread(
        receiver, lambda task, flow: got.append((task, flow)), lambda: broken.append(True), lost.append
    )
    outgoing = SendThread(sender, lost.append)
    for task, flow in flows():
        outgoing.put(task, flow)
    outgoing.finish(word)
    for end in (outgoing, incoming):
        end.thread.join(30)
        assert not end.thread.is_alive()
    assert not lost
    return got, bool(broken)


def assert_all_came(got: list[tuple[Task, StageInput]]) -> None:
    assert [task for task, _ in got] == [task for task, _ in flows()]
    for (_, came), (_, left) in zip(got, flows(), strict=True):
        assert torch.equal(came.latent, left.latent)
        assert (came.tokens is None) == (left.tokens is None)
        assert left.tokens is None or (came.tokens is not None and torch.equal(came.tokens, left.tokens))


def test_flows_arrive_whole_and_in_order_run_after_run() -> None:
    sender, receiver = ends()
    for _ in range(2):
        got, broken = carried(sender, receiver, END)
        assert_all_came(got)
        assert not broken
    got, broken = carried(sender, receiver, ABORT)
    assert broken and len(got) <= len(flows())


def test_tensors_may_travel_beside_the_control() -> None:
    """What is received is what its header announced, and words do not touch the payload."""
    sender, receiver = ends()
    belt = Belt()
    sender._payload = receiver._payload = belt
    for _ in range(2):
        got, broken = carried(sender, receiver, END)
        assert_all_came(got)
        assert not broken and not belt.there
    assert len(belt.asked) == 2 * 6


def test_a_transfer_whose_sender_is_gone_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    sender, receiver = ends()
    receiver._payload, sender._payload = belt, _ = Belt(), Belt()  # so that what is announced never comes
    lost: list[BaseException] = []
    arrived = threading.Event()
    incoming = ReceiveThread(receiver, lambda task, flow: arrived.set(), arrived.set, lost.append)
    sender.send(*flows()[1])
    with belt.changed:
        assert belt.changed.wait_for(lambda: belt.asked, 30), "the transfer did not begin"
    receiver.break_off()
    assert incoming.thread.is_alive(), "a transfer has its time"
    monkeypatch.setattr(links, "_STUCK_SECONDS", 0.0)
    receiver.break_off()
    incoming.thread.join(30)
    assert not incoming.thread.is_alive() and not arrived.is_set()
    assert "given up" in str(lost[0])


seats = st.builds(
    Endpoint,
    st.sampled_from([Machine(i, a, a, i, 8) for i, a in (("a", "10.0.0.1"), ("b", "10.0.0.1"), ("c", "10.0.0.2"))]),
    st.sampled_from(["cpu", "cuda:0", "cuda:1"]),
    st.booleans(),
)


@given(seats, seats)
def test_both_ends_of_a_link_decide_alike(one: Endpoint, other: Endpoint) -> None:
    decided = uses_nccl(one, other)
    assert decided == uses_nccl(other, one)
    if decided:
        assert one.nccl and other.nccl and "cpu" not in (one.device, other.device)
        assert (one.machine.address, one.device) != (other.machine.address, other.device), "NCCL refuses one card twice"


def test_cards_that_differ_talk_by_nccl_and_others_through_the_cpu() -> None:
    here, there = (Machine(a, a, a, a, 2) for a in ("10.0.0.1", "10.0.0.2"))
    endpoint: Any = lambda machine, device, nccl=True: Endpoint(machine, device, nccl)  # noqa: E731
    assert uses_nccl(endpoint(here, "cuda:0"), endpoint(here, "cuda:1"))
    assert uses_nccl(endpoint(here, "cuda:0"), endpoint(there, "cuda:0"))
    assert not uses_nccl(endpoint(here, "cuda:0"), endpoint(here, "cuda:0"))
    assert not uses_nccl(endpoint(here, "cuda:0"), endpoint(there, "cpu"))
    assert not uses_nccl(endpoint(here, "cuda:0"), endpoint(there, "cuda:0", nccl=False))
    ring = link_specs(
        Partition.even(1, 3, 4, 6), [endpoint(here, "cuda:0"), endpoint(there, "cuda:0"), endpoint(there, "cpu")]
    )
    assert [(r.sender, r.receiver, r.nccl) for r in ring] == [(0, 1, True), (1, 2, False), (2, 0, False)]
