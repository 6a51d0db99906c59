"""Files of strangers: whatever they hold ends in a typed error, before anything is built, and in linear time."""

import dataclasses
import io
import json
import pickle
import tracemalloc
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from liveavatar.config import UNTRAINED, ModelConfig
from liveavatar.errors import LiveAvatarError, ModelError
from liveavatar.weights.header import read_header
from liveavatar.weights.quantised import DequantisedSource
from liveavatar.weights.settings import settings_of
from liveavatar.weights.source import SafetensorsSource, TorchSource, opening_files_once

F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def write(path, header, data=16):
    """A safetensors file with this header, as JSON or as bytes, and so many bytes of numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\1" * data)
    return path


HEADERS = {
    "no object": (b"[]", "no JSON object"),
    "no text": (b"\xff\xfe{}", "cut off or no safetensors file"),
    "nested without end": (b"[" * 1_000_000, "nested without end"),
    "objects without end": (b'{"a":' * 300_000, "nested without end"),
    "a number without end": (b'{"a":' + b"9" * 100_000 + b"}", "cut off or no safetensors file"),
    "one name twice": (b'{"a":%b,"a":%b}' % ((json.dumps(F32).encode(),) * 2), "a stands there twice"),
    "metadata of numbers": ({"a": F32, "__metadata__": {"a": 3}}, "no texts"),
    "metadata of lists": ({"a": F32, "__metadata__": [3]}, "no texts"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, "entry of a is damaged"),
    "no entry": ({"a": 3}, "entry of a is damaged"),
    "a shape in words": ({"a": F32 | {"shape": "22"}}, "entry of a is damaged"),
    "a shape of truths": ({"a": F32 | {"shape": [True, 4]}}, "entry of a is damaged"),
    "a shape in halves": ({"a": F32 | {"shape": [1.5, 2]}}, "entry of a is damaged"),
    "a negative shape": ({"a": F32 | {"shape": [-2, -2]}}, "entry of a is damaged"),
    "an unknown type": ({"a": F32 | {"dtype": "F128"}}, "entry of a is damaged"),
    "a type of lists": ({"a": F32 | {"dtype": [1]}}, "entry of a is damaged"),
    "three offsets": ({"a": F32 | {"data_offsets": [0, 8, 16]}}, "entry of a is damaged"),
    "negative offsets": ({"a": F32 | {"data_offsets": [-16, 0]}}, "entry of a is damaged"),
    "offsets the wrong way": ({"a": F32 | {"data_offsets": [16, 0]}}, "as many bytes as its shape"),
    "too large a shape": ({"a": F32 | {"shape": [10**18, 10**18]}}, "as many bytes as its shape"),
    "an absurd shape": ({"a": F32 | {"shape": [10**4000] * 16}}, "as many bytes as its shape"),
    "many dimensions": ({"a": F32 | {"shape": [1] * 5000 + [4]}}, "as many bytes as its shape"),
    "overlapping": ({"a": F32, "b": F32}, "b overlaps another tensor"),
    "a gap": ({"a": F32, "b": F32 | {"data_offsets": [24, 40]}}, "b leaves a gap"),
    "beyond the end": ({"a": F32 | {"shape": [4, 2], "data_offsets": [0, 32]}}, "16 bytes are missing"),
    "more than it says": ({"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, "12 bytes too many"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_do_not_fit_the_file_are_refused(tmp_path, what):
    header, message = HEADERS[what]
    with pytest.raises(ModelError, match=message) as refusal:
        read_header(write(tmp_path / "a.safetensors", header))
    assert "a.safetensors" in refusal.value.what and len(str(refusal.value)) < 600


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 101 << 20, 1 << 20])
def test_a_header_that_lies_about_its_length_is_refused(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="cut off"):
        read_header(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\3\0\0\0" + b"\0" * 99, "is a GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"<!DOCTYPE html><html><body>Sign in", "web page"),
        (b"\0" * 4096, "begins with zeros"),
        (b"", "is empty"),
    ],
)
def test_what_came_in_place_of_a_file_is_named(tmp_path, content, message):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        SafetensorsSource(tmp_path / "a.safetensors")


def test_many_tensors_are_read_once_and_in_linear_memory(tmp_path):
    """Twice as many tensors take no more than some twice the memory; names of 5 MB in all are read once."""
    peaks = []
    for count in (10_000, 20_000):
        entry = {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}
        header = {f"{'x' * 200}.{i}": entry | {"data_offsets": [i, i + 1]} for i in range(count)}
        path = write(tmp_path / f"{count}.safetensors", header, count)
        tracemalloc.start()
        with opening_files_once():
            sources = [SafetensorsSource(path) for _ in range(20)]
            assert all(len(source.keys()) == count for source in sources)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.5 * peaks[0]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.integers(min_value=2**60),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "F8_E4M3", "I8", "F4", "X"]) | VALUES,
        "shape": st.lists(st.integers(0, 5) | st.integers(), max_size=4) | VALUES,
        "data_offsets": st.tuples(st.integers(0, 64), st.integers(0, 64)) | VALUES,
    }
)


@given(header=st.dictionaries(st.text(max_size=8), ENTRY | VALUES, max_size=4), data=st.integers(0, 64))
def test_any_header_is_read_or_refused_with_a_typed_error(tmp_path_factory, header, data):
    path = write(tmp_path_factory.mktemp("any") / "a.safetensors", header, data)
    try:
        source = DequantisedSource(SafetensorsSource(path))
        assert all(tuple(source.read(key).shape) == source.shape(key) for key in source.keys())  # noqa: SIM118
    except LiveAvatarError as e:
        assert len(str(e)) < 1000


@given(spoilt=st.binary(max_size=4), at=st.floats(0, 1), cut=st.integers(0, 30))
def test_any_damage_to_a_whole_file_is_read_or_refused_with_a_typed_error(tmp_path_factory, spoilt, at, cut):
    whole = save({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(3).bfloat16()}, {"format": "pt"})
    place = int(at * len(whole))
    path = tmp_path_factory.mktemp("spoilt") / "a.safetensors"
    path.write_bytes((whole[:place] + spoilt + whole[place + len(spoilt) :])[: len(whole) - cut])
    try:
        source = SafetensorsSource(path)
        assert all(tuple(source.read(key).shape) == source.shape(key) for key in source.keys())  # noqa: SIM118
    except LiveAvatarError as e:
        assert "a.safetensors" in str(e)


# -- settings --


@given(
    field=st.sampled_from([f.name for f in dataclasses.fields(ModelConfig)] + ["model_type", "patch_size"]),
    value=VALUES | st.sampled_from([0, -1, 10**12, 10**400, True, float("nan"), float("inf"), [0.0], ["a"], [[0]]]),
)
def test_any_setting_is_used_or_refused_with_a_typed_error(tmp_path_factory, field, value):
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(UNTRAINED) | {field: value}))
    try:
        found = ModelConfig.from_file(folder / "config.json")
        assert found.num_layers <= 256 and found.dim <= 1 << 17 and 0 < found.eps < 1
    except ModelError as e:
        assert len(str(e)) < 400
    try:
        settings = settings_of(folder)
        assert settings.keys() == json.loads((folder / "config.json").read_text()).keys()
    except ModelError as e:
        assert len(str(e)) < 600


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "JSON"),
        ("1" * 5000, "JSON"),
        (" " * (2 << 20) + "{}", "JSON"),
        ('{"dim": 1, "dim": 2}', "twice"),
        ("[]", "no"),
        ('{"num_hidden_layers": 1000000}', "no network of this kind"),
        ('{"vocab_size": 1e300}', "no network of this kind"),
        ('{"conv_dim": [3, 10000000000]}', "no network of this kind"),
        ('{"dropout": NaN}', "no network of this kind"),
    ],
)
def test_settings_that_nobody_can_build_are_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        settings_of(tmp_path)


# -- pickles --


class Called:
    """Calls something with arguments when it is unpickled."""

    def __init__(self, call, *arguments):
        self.made = call, arguments

    def __reduce__(self):
        return self.made


def archive(path, content, compression=zipfile.ZIP_STORED):
    """A PyTorch archive with this pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/version", "3\n")
    return path


def hash_bomb():
    """A dictionary whose one key is a pair of the same pair of the same pair..."""
    out = io.BytesIO()
    out.write(b"\x80\x02}q\x00)q\x01")
    for i in range(1, 60):
        out.write(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0")
    out.write(b"h\x00h\x3cK\x01s.")
    return out.getvalue()


PICKLES = {
    "a hash that never ends": (hash_bomb(), "nested without end"),
    "a key of tuples": (b"\x80\x02}q\x00))\x86K\x01s.", "no text"),
    "memory of its own": (pickle.dumps({"a": Called(bytearray, 10**13)}, 2), "files that run code"),
    "a call by two names": (pickle.dumps({"a": Called(print, "x")}, 4), "files that run code"),
    "an object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "files that run code"),
    "no end": (b"\x80\x02" + b"]0" * 1000, "cut off or no PyTorch"),
    "many names": (b"\x80\x02" + b"]0" * (600 << 10) + b"N.", "data.pkl has|cut off"),
    "nothing on the stack": (b"\x80\x02s.", "cut off or no PyTorch"),
}


@pytest.mark.parametrize("what", PICKLES)
@pytest.mark.parametrize("form", ["archive", "older"])
def test_hostile_pickles_are_refused(tmp_path, what, form):
    content, message = PICKLES[what]
    path = tmp_path / "a.pth"
    archive(path, content) if form == "archive" else path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        TorchSource(path)


def test_compressed_archives_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"a/data\.pkl is compressed"):
        TorchSource(archive(tmp_path / "a.pth", b"\0" * (64 << 20), zipfile.ZIP_DEFLATED))


def test_a_tensor_that_unfolds_into_more_than_the_file_holds_is_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**12)}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="does not hold all numbers of a"):
        TorchSource(tmp_path / "a.pth")


@given(spoilt=st.binary(min_size=1, max_size=3), at=st.floats(0, 1), older=st.booleans())
def test_any_damage_to_a_pickle_is_read_or_refused_with_a_typed_error(tmp_path_factory, spoilt, at, older):
    path = tmp_path_factory.mktemp("spoilt") / "a.pth"
    torch.save({"a.weight": torch.ones(4, 4)}, path, _use_new_zipfile_serialization=not older)
    whole = path.read_bytes()
    place = int(at * len(whole))
    path.write_bytes(whole[:place] + spoilt + whole[place + len(spoilt) :])
    try:
        source = TorchSource(path)
        assert all(tuple(source.read(key).shape) == source.shape(key) for key in source.keys())  # noqa: SIM118
    except LiveAvatarError as e:
        assert "a.pth" in str(e)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_tensors_under_a_trainers_word_are_read(tmp_path, wrapper):
    torch.save({wrapper: {"a": torch.ones(2)}, "epoch": 3}, tmp_path / "a.pt")
    assert torch.equal(TorchSource(tmp_path / "a.pt").read("a"), torch.ones(2))
