"""Messages between processes arrive as they were sent, and one that names code is refused."""

import builtins
import dataclasses
import io
import os
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed.test_topology import cuts
from engine.tiny import TinyComponents, tiny_config
from hypothesis import given
from safetensors.torch import save_file

from liveavatar import utils
from liveavatar.attention_choice import AttentionUse
from liveavatar.codec import ExecConfig
from liveavatar.components import MINI_FOLDER, open_components
from liveavatar.config import MINI
from liveavatar.distributed.topology import LinkSpec
from liveavatar.distributed.wire import (
    Handshake,
    ModelSpec,
    RunBegun,
    WireError,
    WorkerEvents,
    WorkerFault,
    decode,
    encode,
)
from liveavatar.distributed.worker import host_weight_cache
from liveavatar.engine.local import ModelCache
from liveavatar.errors import PlanError
from liveavatar.mini.slow import SlowComponents
from liveavatar.model.transformer import ModelSlice
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.offload.host_weights import supports_shared_memory
from liveavatar.request import SinkDistance
from liveavatar.storage import StorageConfig
from liveavatar.task_graph import Denoise, Partition, Prefill, paced_order
from liveavatar.weights.lora import ExtraLoRA

PROJECT = Path(__file__).parents[2]


def crossed(message: Any) -> Any:
    """A message on the other side, where its buffers are read-only bytes."""
    data, buffers = encode(message)
    return decode((data, [bytes(buffer) for buffer in buffers]))


@given(cuts())
def test_cuts_and_tasks_survive_the_crossing(cut: Partition) -> None:
    assert crossed(cut) == cut
    tasks = [start.task for start in paced_order(cut, 5)]
    assert crossed(tasks) == tasks


@pytest.mark.parametrize(
    "message",
    [
        None,
        ("text", 1, 2.5, True, b"bytes", [1, (2,)], {"cpu": 3}),
        range(2, 9, 3),
        Handshake(1, "0.1", "2.9", False, {"cpu": ""}),
        (LinkSpec(0, 1, True), ExecConfig("cpu", "float32", 2, 7)),
        (StorageConfig(offload_layers=2), SinkDistance("replay", 1, ((2, 3),)), NoiseSchedule((1.0,), (1.0, 0.0))),
        RunBegun(AttentionUse("cuda:0", "sdpa", "cuDNN", 0.002), "sage is not used on cuda:0"),
        WorkerEvents("done", (Prefill(1, 0, 2), Denoise(3, 1, 0)), (), 1.5, 0.0, WorkerFault("link", "lost", "")),
    ],
    ids=str,
)
def test_a_message_arrives_as_it_was_sent(message: Any) -> None:
    arrived = crossed(message)
    assert arrived == message and type(arrived) is type(message)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_tensors_arrive_bit_for_bit_in_memory_of_their_own(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = torch.randn((2, *shape)).to(dtype)[1]
    arrived = crossed(WorkerEvents("done", (), (sent,), 0.0, 0.0, None)).latents[0]
    assert arrived.dtype == dtype and arrived.shape == shape and torch.equal(arrived, sent)
    before = sent.clone()
    arrived.zero_()
    assert torch.equal(sent, before)


def test_a_view_is_sent_without_what_surrounds_it() -> None:
    wide = torch.arange(1_000_000.0).reshape(1000, 1000)
    data, buffers = encode(wide[:, 3].t())
    assert len(data) < 1000 and [len(bytes(buffer)) for buffer in buffers] == [4000]
    assert torch.equal(crossed(wide.t()[5:7]), wide.t()[5:7])


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 2), np.float32)])
def test_arrays_arrive_as_they_were_sent(array: np.ndarray) -> None:
    arrived = crossed({"a": array.T})["a"]
    assert arrived.dtype == array.dtype and arrived.flags.writeable and np.array_equal(arrived, array.T)


@pytest.mark.parametrize(
    "message",
    [os.system, Path("x"), utils, np.array(["x"]), np.array([None]), np.float32(1), torch.float32, ValueError()],
    ids=repr,
)
def test_what_is_no_plain_data_is_not_sent(message: object) -> None:
    with pytest.raises(WireError, match="cannot be sent"):
        encode((1, message))


@dataclasses.dataclass(frozen=True)
class LinkSpec_:
    """Takes a name of the table, and is not the type of that name."""

    sender: int


def test_a_type_that_only_has_a_known_name_is_not_sent() -> None:
    impostor = dataclasses.make_dataclass("LinkSpec", ["sender"])
    for message in (impostor(0), LinkSpec_(0)):
        with pytest.raises(WireError):
            encode(message)


def named(module: str, name: str, argument: str, protocol: int) -> bytes:
    """A pickle that calls `module`.`name`, of which `name` may have dots, with one text."""
    text = f"({pickle.dumps(argument, 0)[:-1].decode()}tR.".encode()
    if protocol < 4:
        return f"c{module}\n{name}\n".encode() + text
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    return b"\x80\x04" + words + b"\x93" + text


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "range"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("liveavatar.utils", "to_device_async"),
        ("liveavatar.distributed.wire", "os.system"),
        ("liveavatar.distributed.wire", "fault_from.__globals__"),
        ("liveavatar.distributed.wire", "LinkSpec"),
        ("/packs/live_avatar.liveavatar.distributed.wire", "os.system"),
    ],
)
def test_a_message_that_names_code_is_refused(module: str, name: str, protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    payload = named(module, name, f"touch {trace}", protocol)
    assert any(op.name in ("GLOBAL", "STACK_GLOBAL") for op, _, _ in pickletools.genops(payload)), "it is well formed"
    with pytest.raises(WireError, match="none may name code") as refused:
        decode((payload, []))
    assert f"{module}.{name}" in str(refused.value) and not trace.exists()


class _Reduced:
    def __init__(self, *parts: Any):
        self.parts = parts

    def __reduce__(self) -> Any:
        return self.parts


@pytest.mark.parametrize(
    "hostile",
    [
        _Reduced(os.system, ("true",)),
        _Reduced(getattr, (_Reduced(__import__, ("os",)), "system")),
        [1, {"deep": (_Reduced(builtins.eval, ("1",)),)}],
    ],
)
@pytest.mark.parametrize("protocol", range(6))
def test_what_pickle_itself_writes_of_code_is_refused(hostile: object, protocol: int) -> None:
    with pytest.raises(WireError, match="none may name code"):
        decode((pickle.dumps(hostile, protocol), []))


_ENTRY = object()


def persistent(pid: Any) -> bytes:
    """A pickle of one entry of the table, whatever it is."""

    class Writer(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            return pid if item is _ENTRY else None

    file = io.BytesIO()
    Writer(file, 5).dump(_ENTRY)
    return file.getvalue()


@pytest.mark.parametrize(
    "pid",
    [
        0,
        (),
        ("Unknown", 1),
        ("os.system", "true"),
        ("LinkSpec", 1),
        ("LinkSpec", 1, 2, True, 4),
        (["LinkSpec"], 1),
        ("Tensor", "torch.load", (1,), b"abcd"),
        ("Tensor", "torch.float32", (3,), b"abcd"),
        ("Tensor", "torch.float32", (1,), b"abc"),
        ("ndarray", "|O", (1,), b"12345678"),
        ("ndarray", "<f4", (2,), b"abcd"),
        ("range", 1, 2, 0),
    ],
    ids=repr,
)
def test_entries_that_are_not_in_the_table_are_refused(pid: Any) -> None:
    with pytest.raises(WireError, match="cannot be read"):
        decode((persistent(pid), []))


@pytest.mark.parametrize("cut_off", [0, 1, 20, -1])
def test_a_damaged_message_is_refused(cut_off: int) -> None:
    data, buffers = encode((torch.zeros(3), LinkSpec(0, 1, False)))
    for damaged in ((data[:cut_off], buffers), (data, []), data, None):
        with pytest.raises(WireError, match="cannot be read"):
            decode(damaged)  # type: ignore[arg-type]


def test_a_library_under_the_name_of_its_folder_is_understood() -> None:
    script = f"""
import sys
sys.path.insert(0, {str(PROJECT / "tests")!r})
from distributed.killed_driver import library
get = library(__import__("pathlib").Path({str(PROJECT)!r}))
wire, tasks = get("distributed.wire"), get("task_graph")
data, _ = wire.encode((tasks.Denoise(1, 2, 3), range(4)))
assert "liveavatar" not in sys.modules and b"live" not in data
print(data.hex())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert decode((bytes.fromhex(ran.stdout.split()[-1]), [])) == (Denoise(1, 2, 3), range(4))


def test_models_are_opened_again_from_their_files() -> None:
    mini = open_components("mini")
    again = crossed(ModelSpec.of(mini)).open()
    assert (again.name, again.config) == (mini.name, mini.config)
    assert str(MINI_FOLDER) in again.describe()
    assert crossed(ModelSpec.of(open_components("untrained"))).open().name == "untrained"
    slow = crossed(ModelSpec.of(SlowComponents(0.25))).open()
    assert isinstance(slow, SlowComponents) and slow.layer_seconds == 0.25
    with pytest.raises(PlanError, match="in this process only"):
        ModelSpec.of(TinyComponents(tiny_config()))


def test_further_loras_cross_and_weights_of_another_strength_are_not_shared(tmp_path: Path) -> None:
    module, style = "blocks.0.self_attn.q", tmp_path / "style.safetensors"
    pair = {f"{module}.lora_A.weight": torch.ones(2, MINI.dim), f"{module}.lora_B.weight": torch.ones(MINI.dim, 2)}
    save_file(pair, style)
    specs = [ModelSpec.of(open_components("mini", extra_loras=[ExtraLoRA(style, by)])) for by in (0.5, 0.5, 1.0)]
    again = crossed(specs[0]).open()
    assert again.files.extra_loras == (ExtraLoRA(style, 0.5),) and again.loras[1].changed == 1
    assert specs[0] == specs[1] != specs[2]
    storage, whole = StorageConfig(offload_layers=MINI.num_layers), ModelSlice.whole(MINI)
    (tmp_path / "worker").mkdir(mode=0o700)
    caches = [ModelCache(host_weight_cache(spec, tmp_path / "worker" / "log")) for spec in specs]
    for cache, spec in zip(caches, specs, strict=True):
        cache.get(spec.open(), "cpu", whole, torch.float32, storage)
    first, second, stronger = (cache.shared_bytes.keys() for cache in caches)
    assert first == second and not first & stronger
    assert bool(first) == supports_shared_memory()
