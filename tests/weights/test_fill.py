"""Filling modules built on the meta device: everything they own, nothing else, one tensor at a time."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from weights.core_files import as_bytes
from weights.layout_files import quantised

from liveavatar.errors import MissingFilesError, ModelError
from liveavatar.model.quantize import replace_linears
from liveavatar.weights.load import fill
from liveavatar.weights.source import DictSource


class Tied(nn.Module):
    """Two layers that share a weight, and one persistent buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("order", torch.arange(3))


class Recorder(DictSource):
    """Counts what is read."""

    def __init__(self, tensors):
        super().__init__(tensors)
        self.reads = []

    def read(self, key):
        self.reads.append(key)
        return super().read(key)


def on_meta(make):
    with torch.device("meta"):
        return make()


def tensors_of(module):
    return {k: torch.randn(v.shape) if v.is_floating_point() else torch.tensor([5, 6, 7]) for k, v in module.items()}


def test_fill_makes_everything_real_without_gradients_and_keeps_ties():
    module = on_meta(Tied)
    source = Recorder(tensors_of(module.state_dict()) | {"stranger": torch.zeros(1)})
    fill(module, source, dtype=torch.bfloat16, device="cpu")
    assert {k: v.dtype for k, v in module.state_dict().items()} == {
        "first.weight": torch.bfloat16,
        "first.bias": torch.bfloat16,
        "second.weight": torch.bfloat16,
        "order": torch.int64,
    }
    assert module.second.weight is module.first.weight
    assert isinstance(module.first.weight, nn.Parameter)
    assert not any(p.requires_grad for p in module.parameters())
    assert not module.training
    assert sorted(source.reads) == ["first.bias", "first.weight", "order"]
    assert torch.equal(module.first.weight, source.read("first.weight").bfloat16())


def test_fill_takes_a_tied_tensor_under_any_of_its_names():
    module = on_meta(Tied)
    tensors = tensors_of(module.state_dict())
    del tensors["first.weight"]
    fill(module, DictSource(tensors), dtype=torch.float32, device="cpu")
    assert torch.equal(module.first.weight, tensors["second.weight"])


def test_fill_copies_so_that_the_source_may_go():
    module = on_meta(lambda: nn.Linear(2, 2))
    tensors = tensors_of(module.state_dict())
    before = tensors["weight"].clone()
    fill(module, DictSource(tensors), dtype=torch.float32, device="cpu")
    tensors["weight"].zero_()
    assert torch.equal(module.weight, before)


def test_dtype_can_depend_on_the_name():
    module = on_meta(lambda: nn.Linear(2, 2))
    dtype = {"weight": torch.bfloat16, "bias": torch.float32}.__getitem__
    fill(module, DictSource(tensors_of(module.state_dict())), dtype=dtype, device="cpu")
    assert (module.weight.dtype, module.bias.dtype) == (torch.bfloat16, torch.float32)


def test_missing_tensors_are_listed_before_anything_is_read():
    module = on_meta(Tied)
    source = Recorder({"first.bias": torch.zeros(4)})
    with pytest.raises(MissingFilesError, match=r"2 of the tensors.*first\.weight, order"):
        fill(module, source, dtype=torch.float32, device="cpu")
    assert source.reads == []


def test_wrong_shape_is_refused_with_both_shapes():
    module = on_meta(lambda: nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"weight.*\[3, 2\].*\[2, 2\]"):
        fill(
            module, DictSource({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}), dtype=torch.float32, device="cpu"
        )


def test_computed_buffers_are_refused():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.arange(3), persistent=False)

    with pytest.raises(ModelError, match="table"):
        fill(on_meta(Computed), DictSource({}), dtype=torch.float32, device="cpu")


FILL_AND_MEASURE = """
import sys, torch
from torch import nn
from safetensors.torch import save_file
from liveavatar.model.quantize import replace_linears
from liveavatar.weights.load import fill
from pathlib import Path
from liveavatar.weights.source import open_weights
def rss(line):
    return next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith(line))
with torch.device("meta"):
    module = nn.ModuleList(nn.Linear(2048, 2048, bias=False) for _ in range(12))
replace_linears(module, sys.argv[2])
source = open_weights(Path(sys.argv[1]))
source.shape("0.weight"); source.shape("11.weight")
open("/proc/self/clear_refs", "w").write("5")  # forget the peak of the imports
before = rss("VmRSS")
fill(module, source, dtype=torch.bfloat16, device="cpu")
print(rss("VmHWM") - before, rss("VmRSS") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("weights", "stays"),
    [
        ("plain", 101e6),
        ("fp8", 50e6),
        *(pytest.param(weights, 50e6, marks=pytest.mark.slow) for weights in ("fp8-tensor", "int8")),
    ],
)
def test_peak_memory_is_what_stays_and_one_tensor(tmp_path, weights, stays):
    """200 MB of float32 in two shards become 100 MB of bfloat16 or half of that; the peak is a 17 MB tensor more."""
    shards = [f"m-{i}.safetensors" for i in (1, 2)]
    weight_map = {}
    for i, shard in enumerate(shards):
        names = [f"{n}.weight" for n in range(6 * i, 6 * i + 6)]
        save_file({n: torch.full((2048, 2048), 1.0) for n in names}, tmp_path / shard)
        weight_map |= dict.fromkeys(names, shard)
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    command = [sys.executable, "-c", FILL_AND_MEASURE, str(tmp_path), weights]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    peak, kept = map(int, done.stdout.split())
    print(f"{weights}: {kept / 1e6:.0f} MB kept, {peak / 1e6:.0f} MB at the peak")
    one = 2048 * 2048 * 4
    assert kept < stays + 18e6
    assert peak < stays + one + 18e6


FILL_PACKED_AND_MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
from liveavatar.model.packed import pack_linears
from liveavatar.weights.formats import open_file, open_packed
from liveavatar.weights.load import fill
def rss(line):
    return next(int(x.split()[1]) * 1024 for x in open("/proc/self/status") if x.startswith(line))
with torch.device("meta"):
    module = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(12))
path = Path(sys.argv[1])
source = open_packed(path, open_file(path), open_file(path))
pack_linears(module, source.matrices)
torch.zeros(4).view(torch.uint8).isfinite()
open("/proc/self/clear_refs", "w").write("5")
before = rss("VmRSS")
fill(module, source, dtype=torch.bfloat16, device="cpu")
print(rss("VmHWM") - before, rss("VmRSS") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_of_packed_matrices_is_what_stays_and_one_of_them(tmp_path):
    """Twelve matrices of 9.4 MB in nvfp4, each of which would be 67 MB as numbers."""
    path, tensors = tmp_path / "m.safetensors", {}
    for number in range(12):
        stored, how = quantised(torch.full((4096, 4096), 0.5), "nvfp4")
        tensors |= {f"{number}.{name}": tensor for name, tensor in stored.items()}
        tensors[f"{number}.comfy_quant"] = as_bytes(json.dumps(how).encode())
    save_file(tensors, path)
    command = [sys.executable, "-c", FILL_PACKED_AND_MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    peak, kept = map(int, done.stdout.split())
    print(f"{kept / 1e6:.0f} MB kept, {peak / 1e6:.0f} MB at the peak")
    stays = 12 * 4096 * 4096 * 9 // 16
    assert kept < stays + 18e6
    assert peak < stays + 2 * stays / 12 + 18e6


class Halves(nn.Module):
    """Keeps its weight in two tensors."""

    quantized_names = ("weight", "rest")

    def __init__(self):
        super().__init__()
        self.weight, self.rest = (nn.Parameter(torch.empty(2, 3)) for _ in range(2))
        self.bias = nn.Parameter(torch.empty(2))

    def quantize_parts(self, weights):
        (weight,) = weights
        return {"weight": weight.floor(), "rest": weight - weight.floor()}


def test_what_a_module_packs_comes_from_its_weight_alone():
    """The source has one weight under the module's name, in its own dtype until it is packed."""
    module = on_meta(lambda: nn.Sequential(Halves()))
    weight = torch.tensor([[1.5, 2.25, 3.0], [-0.5, 0.125, 7.0]])
    source = Recorder({"0.weight": weight, "0.bias": torch.ones(2)})
    fill(module, source, dtype=torch.bfloat16, device="cpu")
    assert sorted(source.reads) == ["0.bias", "0.weight"]
    assert torch.equal(module[0].weight + module[0].rest, weight)
    assert module[0].weight.dtype == torch.float32 and module[0].bias.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in module.parameters())
    with pytest.raises(MissingFilesError, match=r"0\.weight"):
        fill(
            on_meta(lambda: nn.Sequential(Halves())),
            DictSource({"0.bias": torch.ones(2)}),
            dtype=torch.float32,
            device="cpu",
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_value_that_is_not_finite_is_named_while_it_is_loaded(value, dtype):
    tensors = {"blocks.0.weight": torch.ones(32, 32), "blocks.0.bias": torch.ones(32)}
    for weights in ("plain", "fp8", "int8"):
        for key, tensor in tensors.items():
            module = on_meta(lambda: nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(32, 32)])}))
            replace_linears(module, weights)
            spoilt = tensor.clone()
            spoilt.view(-1)[7] = value
            with pytest.raises(ModelError, match=rf"^{key} in .* not finite"):
                fill(module, DictSource(tensors | {key: spoilt}), dtype=dtype, device="cpu")


def test_a_value_too_large_for_the_dtype_says_so():
    module = on_meta(lambda: nn.Linear(2, 2))
    tensors = {"weight": torch.full((2, 2), 1e6), "bias": torch.zeros(2)}
    fill(module, DictSource(tensors), dtype=torch.bfloat16, device="cpu")
    with pytest.raises(ModelError, match=r"weight in .* too large for float16") as refusal:
        fill(on_meta(lambda: nn.Linear(2, 2)), DictSource(tensors), dtype=torch.float16, device="cpu")
    assert "bfloat16" in refusal.value.nearest


@pytest.mark.parametrize("weights", ["plain", "fp8", "int8"])
def test_whole_numbers_are_never_taken_for_weights(weights):
    module = on_meta(lambda: nn.Sequential(nn.Linear(32, 32)))
    replace_linears(module, weights)
    tensors = {"0.weight": torch.ones(32, 32, dtype=torch.int8), "0.bias": torch.zeros(32)}
    with pytest.raises(ModelError, match=r"0\.weight in whole numbers"):
        fill(module, DictSource(tensors), dtype=torch.float32, device="cpu")
