"""Packed matrices at work: the same video wherever they lie and however the work is cut, near that of their numbers."""

import shutil

import pytest
import torch
from engine.tiny import tiny_effective, tiny_job
from offload.drive import Allocations
from weights.gguf_files import mini_transformer
from weights.layout_files import is_inside, write_packed

from liveavatar.components import MINI_FOLDER, FolderComponents, open_components, packed_of
from liveavatar.engine.local import LocalEngine, ModelCache
from liveavatar.planner import make_plan
from liveavatar.storage import StorageConfig

BLOCKS = 5
PACKED = StorageConfig(weights="packed")
KINDS = {"GGUF": ("Q4_0", "Q8_0"), "ComfyUI": ("nvfp4", "int8 by rows")}
"""Of matrices, and of those that make values."""
ELSEWHERE = (
    StorageConfig(weights="packed", offload_text_kv=True),
    StorageConfig(weights="packed", offload_layers=3),
    StorageConfig(weights="packed", kv_offload=True, offload_text_kv=True, offload_layers=3),
)


@pytest.fixture(scope="module", params=KINDS)
def model(tmp_path_factory, request) -> FolderComponents:
    """The miniature in four bits, its values in eight."""
    folder, (few, more) = tmp_path_factory.mktemp("models") / "mini", KINDS[request.param]
    shutil.copytree(MINI_FOLDER, folder)
    network = mini_transformer()
    inside = [name for name, value in network.items() if is_inside(name, torch.from_numpy(value))]
    kinds = {name: more if name.endswith(".v.weight") else few for name in inside}
    return open_components(write_packed(folder / "mini", network, kinds))


def latents(model: FolderComponents, storage: StorageConfig, stages: str = "1x1", compiled: bool = False):
    effective = tiny_effective(BLOCKS)
    plan = make_plan(effective, model.config, model="mini", stages=stages, storage=storage, packed=packed_of(model))
    engine = LocalEngine(model, plan)
    return torch.cat(list(engine.run(tiny_job(model.config, effective))), 1)


@pytest.fixture(scope="module")
def whole(model):
    return latents(model, PACKED)


def test_the_video_is_that_of_the_unpacked_numbers(model, whole):
    """The LoRA is added beside the product and not to the matrix, in another order of rounding."""
    torch.testing.assert_close(whole, latents(model, StorageConfig()), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("storage", ELSEWHERE, ids=str)
@pytest.mark.parametrize("stages", ["1x1", "1x2"])
def test_packed_matrices_on_the_host_give_the_same_to_the_bit(model, whole, storage, stages):
    assert torch.equal(latents(model, storage, stages), whole)


def test_layers_are_compiled_whole(model):
    """One graph without breaks, which gives what the layer gives by itself."""
    from liveavatar.model.transformer import ModelSlice

    net = model.transformer(ModelSlice(range(1)), "cpu", torch.float32, "packed")
    ffn = net.blocks["0"].ffn
    x = torch.randn(24, model.config.dim)
    with torch.inference_mode():
        compiled = torch.compile(ffn, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), ffn(x))


@pytest.mark.parametrize("storage", [PACKED, *ELSEWHERE], ids=str)
def test_what_an_engine_holds_is_within_three_hundredths_of_the_plan(model, storage):
    """From the first look at the prompt to the last block."""
    effective, device = tiny_effective(BLOCKS, 2, "128x128"), "cpu:0"
    plan = make_plan(effective, model.config, model="mini", devices=(device,), storage=storage, packed=packed_of(model))
    nets = ModelCache()
    with Allocations() as allocations:
        engine = LocalEngine(model, plan, nets)
        engine.load()
        allocations.peak = allocations.now
        list(engine.run(tiny_job(model.config, effective)))
    terms = plan.terms_by_device[device]
    assert nets.bytes_by_device[device] == pytest.approx(terms["weights"] + terms["conditions"], rel=0.03)
    assert sum(size for name, size in nets.bytes_by_device.items() if name != device) == pytest.approx(
        plan.stages[0].host_weights, rel=0.03
    )
    most = plan.total_by_device[device] - terms["VAE"]
    assert 0.4 * terms["workspace"] <= allocations.peak - (most - terms["workspace"]) <= terms["workspace"]
