"""On a GPU: however the network is kept, cut and driven, it makes the same latents, in the memory that was planned."""

import dataclasses
import gc

import pytest
import torch
from engine.tiny import ROUND_CONFIG as CONFIG
from engine.tiny import TinyComponents, tiny_effective, tiny_job
from gpu.device import DEVICE, ON_GPU, held, on_the_device, psnr

from liveavatar.compiler import check_compiler
from liveavatar.engine.local import LocalEngine, ModelCache
from liveavatar.errors import ModelError
from liveavatar.model.quantize import check_fp8_matmul, fp8_matmul_failure, quantize_linears, supports_fp8_matmul
from liveavatar.planner import CUDA_CONTEXT_BYTES, FIDELITY_LEVELS, Plan, make_plan
from liveavatar.storage import PLAIN, StorageConfig

pytestmark = on_the_device
EFFECTIVE = tiny_effective(6, size="128x128")
ROUNDED = {"fp8": 25.0, "fp8-tensor": 20.0, "int8": 25.0}
"""Least PSNR of latents against plain ones, for weights in a format."""


@pytest.fixture(scope="module")
def components() -> TinyComponents:
    return TinyComponents(CONFIG)


def planned(
    storage: StorageConfig = PLAIN, stages: str = "1x1", dtype: str = "bfloat16", compiled: bool = False
) -> Plan:
    plan = make_plan(
        EFFECTIVE, CONFIG, model="tiny", stages=stages, devices=(DEVICE,), dtype=dtype, storage=storage, threads=1
    )
    return dataclasses.replace(plan, compiled=compiled)


def latents(components: TinyComponents, plan: Plan, ahead: bool | None = None) -> torch.Tensor:
    engine = LocalEngine(components, plan, prefetch=ahead)
    made = torch.cat(list(engine.run(tiny_job(CONFIG, EFFECTIVE))), 1)
    engine.release()
    assert made.isfinite().all()
    return made


@pytest.fixture(scope="module")
def plain(components: TinyComponents) -> torch.Tensor:
    return latents(components, planned())


@pytest.mark.parametrize("weights", ["plain", "fp8", "fp8-tensor", "int8"])
@pytest.mark.parametrize("keys", ["plain", "fp8", "int4"])
def test_what_only_moves_changes_no_bit(components, weights, keys):
    resident = latents(components, planned(StorageConfig(weights, keys)))
    for moved in (
        {"kv_offload": True},
        {"offload_layers": 2},
        {"offload_layers": 6, "offload_text_kv": True},
        {"kv_offload": True, "offload_text_kv": True, "offload_layers": 3},
    ):
        assert torch.equal(latents(components, planned(StorageConfig(weights, keys, **moved))), resident), moved


@pytest.mark.parametrize("weights", ["fp8", "fp8-tensor", "int8"])
def test_rounded_weights_stay_near(components, plain, weights):
    assert psnr(latents(components, planned(StorageConfig(weights))), plain) > ROUNDED[weights]


@pytest.mark.parametrize(("kv_dtype", "near"), [("fp8", 30), ("int4", 20)])
def test_rounded_keys_stay_near(components, plain, kv_dtype, near):
    assert psnr(latents(components, planned(StorageConfig(kv_dtype=kv_dtype))), plain) > near


def test_the_working_dtype_stays_near_float32(components, plain):
    assert psnr(plain, latents(components, planned(dtype="float32"))) > 30


@pytest.mark.parametrize("stages", ["1x2", "2x1", "2x2", "4x1", "1x6"])
def test_no_cut_changes_a_bit(components, plain, stages):
    assert torch.equal(latents(components, planned(stages=stages)), plain)


@pytest.mark.parametrize("ahead", [False, True])
def test_working_ahead_changes_no_bit(components, plain, ahead):
    assert torch.equal(latents(components, planned(), ahead), plain)


def test_the_same_again_is_the_same(components, plain):
    assert torch.equal(latents(components, planned()), plain)


def test_compiled_layers_stay_near(components):
    """With everything that can be kept otherwise; plain and fp8 layers are compiled by `bench suite`, too."""
    try:
        check_compiler([DEVICE])
    except ModelError as error:
        pytest.skip(str(error))
    storage = StorageConfig("fp8", "fp8", kv_offload=True, offload_layers=3)
    written, compiled = (latents(components, planned(storage, compiled=c)) for c in (False, True))
    assert psnr(compiled, written) > 30


@pytest.mark.parametrize("by_row", [True, False])
def test_a_card_that_should_multiplies_fp8_matrices(by_row):
    """The trial says so, and the product is that of float32 within e4m3's precision, with uneven rows."""
    device = torch.device(DEVICE)
    check_fp8_matmul(device, by_row)
    if not supports_fp8_matmul(device, by_row):
        pytest.skip(f"{DEVICE} does not multiply fp8 matrices: {fp8_matmul_failure(device, by_row)}")
    generator = torch.Generator().manual_seed(1)
    weight, x = (torch.randn(shape, generator=generator).to(DEVICE) for shape in ((384, 256), (96, 256)))
    if by_row:
        weight *= torch.logspace(-3, 1, 384, device=DEVICE).unsqueeze(1)
    net = torch.nn.Sequential(torch.nn.Linear(256, 384, bias=False, device=DEVICE))
    net[0].weight.data = weight
    quantize_linears(net, "fp8" if by_row else "fp8-tensor")
    made, true = net(x.bfloat16()).float(), x @ weight.t()
    assert ((made - true).norm(dim=0) / true.norm(dim=0)).max() < 0.06


@pytest.mark.parametrize("rung", FIDELITY_LEVELS, ids=lambda rung: rung.name)
def test_what_stays_takes_what_was_planned(components, rung):
    if not ON_GPU:
        pytest.skip("the CPU does not count what it allocates")
    plan = planned(dataclasses.replace(rung.storage, offload_layers=3 if rung.offloads_layers else 0))
    gc.collect()
    before = held()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    engine = LocalEngine(components, plan, ModelCache(), prefetch=False)
    stays = []
    job = tiny_job(CONFIG, EFFECTIVE)
    for number, _ in enumerate(engine.run(job)):
        if number:
            stays.append(held() - before)
    terms = plan.terms_by_device[DEVICE]
    staying = sum(terms.values()) - terms["workspace"] - terms["VAE"] - terms["contexts"]
    assert max(stays) == pytest.approx(staying, rel=0.05)
    assert torch.cuda.max_memory_allocated(DEVICE) - before <= 1.03 * (sum(terms.values()) - terms["VAE"])
    engine.release()
    del engine
    gc.collect()
    assert held() == before, "nothing is left"


def test_a_cap_is_kept_and_taken_away(components):
    if not ON_GPU:
        pytest.skip("the CPU has no cap")
    plan = dataclasses.replace(planned(), cap=2_000_000_000 - CUDA_CONTEXT_BYTES)
    latents(components, plan)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(2_000_000_000, dtype=torch.uint8, device=DEVICE)
    latents(components, planned())
    torch.empty(2_000_000_000, dtype=torch.uint8, device=DEVICE)
