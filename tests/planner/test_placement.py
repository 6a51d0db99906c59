"""A placement chooses where that was left to it, and lays out as told where it was not."""

from collections.abc import Callable

import pytest
import torch

from liveavatar.config import UNTRAINED, WAN2_2_S2V_14B
from liveavatar.distributed.wire import fault_from
from liveavatar.distributed.worker_handle import worker_error
from liveavatar.errors import PlanError
from liveavatar.placement import Placement
from liveavatar.planner import (
    CUDA_CONTEXT_BYTES,
    GIB,
    Hardware,
    Plan,
    PlanOptions,
    apply_plan_size,
    choose_plan,
    next_level_down,
    stage_plan,
)
from liveavatar.recorder import out_of_memory
from liveavatar.request import Request, ResolvedRequest, image_size_for, resolve
from liveavatar.storage import StorageConfig, cli_options
from liveavatar.utils import cpu_has_bfloat16

MODEL = "wan2.2-s2v-14b"


def effective(size: str = "704x384") -> ResolvedRequest:
    return resolve(Request(size=size), image_size_for(size), 160_000, 16_000)


def cards(text: str) -> Callable[[], Hardware]:
    return lambda: Hardware.parse(text)


def unasked() -> Hardware:
    raise AssertionError("nobody should look at cards")


def laid_out(placement: Placement, hardware: Callable[[], Hardware] = unasked, size: str = "704x384") -> Plan:
    return placement.make_plan(effective(size), WAN2_2_S2V_14B, MODEL, hardware)


def test_gpus_that_were_left_to_the_library_get_the_plan_of_the_planner():
    found = laid_out(Placement(("cuda:0",), threads=1), cards("1x24"))
    assert found == choose_plan(effective(), WAN2_2_S2V_14B, Hardware.parse("1x24"), PlanOptions(), model=MODEL)
    assert found.stages[0].storage.weights == "fp8" and found.usable and found.forecast and found.cap == 0


@pytest.mark.parametrize(
    "told",
    [
        Placement(("cuda:0",), "1x1"),
        Placement(("cuda:0",), storage=StorageConfig()),
        Placement(("cuda:0",), fit=False),
        Placement(("cuda:0", "studio2/cuda:0")),
        Placement(("cpu",)),
        Placement(("cuda:0", "cpu")),
    ],
)
def test_what_was_told_is_laid_out_without_a_look_at_the_cards(told):
    found = laid_out(told)
    assert {stage.storage for stage in found.stages} == {StorageConfig()} and found.forecast is None


def test_a_storage_that_was_told_is_that_of_every_stage():
    kept = StorageConfig("int8", "fp8", True, True, 3)
    found = laid_out(Placement(("cuda:0", "cuda:1"), storage=kept))
    assert [stage.storage for stage in found.stages] == [kept, kept]
    with pytest.raises(PlanError, match="21 layers"):
        laid_out(Placement(("cuda:0", "cuda:1"), storage=StorageConfig(offload_layers=21)))


def test_only_the_named_devices_are_used():
    found = laid_out(Placement(("cuda:1", "cuda:3")), cards("4x24"))
    assert set(found.total_by_device) <= {"cuda:1", "cuda:3"}


def test_devices_that_are_not_here_are_laid_out_but_not_chosen_for():
    found = laid_out(Placement(("cuda:0", "cuda:1")), cards("1x24"))
    assert str(found.partition) == "1x2" and found.forecast is None
    with pytest.raises(PlanError, match="cuda:1"):
        laid_out(Placement(("cuda:0", "cuda:1"), fit=True), cards("1x24"))


def test_wishes_reach_the_choice():
    quality, speed = (laid_out(Placement(("cuda:0",), prefer=wish), cards("1x48")) for wish in ("quality", "speed"))
    assert quality.stages[0].storage.weights == "plain" and speed.stages[0].storage.weights == "fp8"
    with pytest.raises(PlanError, match="host"):
        laid_out(Placement(("cuda:0",), host_ram=8), cards("1x24"))


def test_a_smaller_video_is_planned_only_where_it_may_be():
    large, hardware = effective("1280x720"), cards("1x16")
    with pytest.raises(PlanError, match=r"What fits: .*; .*; "):
        Placement(("cuda:0",)).make_plan(large, WAN2_2_S2V_14B, MODEL, hardware)
    allowed = Placement(("cuda:0",), allow_smaller=True)
    made, found = allowed.plan(large, WAN2_2_S2V_14B, MODEL, hardware)
    assert made == apply_plan_size(large, found) and (made.width, made.height) == found.size
    assert made.width * made.height < large.width * large.height and "does not fit" in made.notes[-1]


def test_a_cap_holds_for_what_is_chosen_and_for_what_is_told():
    chosen = laid_out(Placement(("cuda:0",), vram_cap=20), cards("1x80"))
    assert chosen.total_by_device["cuda:0"] <= chosen.cap == int(20e9) - CUDA_CONTEXT_BYTES
    with pytest.raises(PlanError, match="a cap of 20 GB"):
        laid_out(Placement(("cuda:0",), "1x1", vram_cap=20))
    told = laid_out(Placement(("cuda:0",), "1x1", vram_cap=200))
    assert told.cap == int(200e9) - CUDA_CONTEXT_BYTES


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Placement(("cpu",), vram_cap=8), "memory of GPUs, and cpu is none"),
        (Placement(("cuda:0", "studio2/cpu"), vram_cap=8), "studio2/cpu is none"),
        (Placement(("cuda:0",), vram_cap=0.5), "leaves nothing"),
        (Placement(("cuda:0",), vram_cap=-1), "-1 GB is not possible"),
        (Placement(("cuda:0",), host_ram=float("nan")), "not possible"),
        (Placement(("cuda:0",), "1x1", prefer="speed"), "only where a plan is chosen"),
        (Placement(("cpu",), allow_smaller=True), "only where a plan is chosen"),
        (Placement(("cpu",), host_ram=64), "only where a plan is chosen"),
        (Placement(("cuda:0",), "1x1", fit=True), "nobody else names"),
        (Placement(("cuda:0",), storage=StorageConfig(), fit=True), "nobody else names"),
        (Placement(("studio2/cuda:0",), fit=True), "nobody else names"),
        (Placement(("cpu",), vae_tiles="many"), "'many' are not understood"),
        (Placement(("cpu",), vae_tiles="0x2"), "cannot be cut into 0x2 tiles"),
        (Placement(("cpu",), vae_tiles="2x90"), "cannot be cut into 2x90 tiles"),
    ],
)
def test_wishes_that_nobody_would_heed_are_refused(asked, why):
    with pytest.raises(PlanError, match=why) as refused:
        laid_out(asked)
    assert refused.value.nearest


@pytest.mark.parametrize(("flags", "told"), [("fpu avx2", 1), ("fpu avx512_bf16", 0), ("fpu amx_bf16", 0), (None, 0)])
def test_a_processor_without_bfloat16_is_told_of(flags, told, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: {flags}\n" if flags else "processor : 0\n", encoding="utf-8")
    monkeypatch.setattr("liveavatar.placement.cpu_has_bfloat16", lambda: cpu_has_bfloat16(cpuinfo))
    for dtype, expected in (("bfloat16", told), ("float32", 0)):
        plan = Placement(("cpu",), dtype=dtype).make_plan(effective("256x256"), UNTRAINED, "untrained")
        assert sum("no instructions for bfloat16" in note for note in plan.notes) == expected
    assert cpu_has_bfloat16(tmp_path / "nothing") is None


def test_every_rung_down_takes_less_of_the_device_until_there_is_none():
    layers, seen = range(40), []
    storage = StorageConfig()
    while (down := next_level_down((storage,), len(layers))) is not None:
        seen.append(stage_plan(WAN2_2_S2V_14B, 1056, range(4), layers, 2, "cuda:0", storage).total)
        storage = down[1]
    seen.append(stage_plan(WAN2_2_S2V_14B, 1056, range(4), layers, 2, "cuda:0", storage).total)
    # With all in host memory, a KV cache in fp8 spares the host; on the device its window is widened before attention.
    assert len(seen) == 10 and min(seen[:6]) > seen[-1] and seen[-1] < 1.01 * seen[6] and seen[0] == max(seen)
    assert storage == StorageConfig("fp8", "fp8", True, True, 40)
    assert next_level_down((StorageConfig("int8"),), 40) == next_level_down(
        (StorageConfig("fp8", "fp8", True, True, 3),), 40
    )


def test_a_full_device_names_what_to_try_next():
    def said(*storages: StorageConfig, config=UNTRAINED) -> str:
        placement = Placement(("cuda:0",), storage=storages[0])
        return str(out_of_memory(placement.make_plan(effective(), config, "untrained")))

    assert "unrounded, text KV weights offloaded (--offload-text-kv)" in said(StorageConfig())
    lower = said(StorageConfig(kv_offload=True, offload_text_kv=True))
    assert f"layers offloaded (--kv-offload --offload-text-kv --offload-layers {UNTRAINED.num_layers})" in lower
    last = StorageConfig("fp8", "fp8", True, True, UNTRAINED.num_layers)
    assert "Nothing can be kept in less" in said(last) and "smaller size" in said(last)


def test_a_full_device_of_a_worker_does_so_too():
    plan = laid_out(Placement(("cuda:0",), "1x1"))
    fault = fault_from(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))
    assert "--offload-text-kv" in str(worker_error(plan, 0, f"failed: {fault.what}", fault.nearest, [], False))
    assert "--offload-text-kv" not in str(worker_error(plan, 0, "failed: out of memory (MemoryError)", "", [], False))


def test_options_say_what_is_not_plain():
    assert cli_options(StorageConfig()) == ""
    assert cli_options(StorageConfig("fp8", "fp8", True, True, 5)) == (
        "--weights fp8 --kv-dtype fp8 --kv-offload --offload-text-kv --offload-layers 5"
    )


def test_host_memory_is_what_was_said():
    plenty = laid_out(Placement(("cuda:0",), host_ram=512), cards("1x24"))
    assert sum(plenty.host_bytes_by_machine.values()) <= 512 * GIB
