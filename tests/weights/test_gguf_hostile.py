"""GGUF headers that lie are refused with a typed error, before memory is taken for what they promise."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weights.gguf_files import write_gguf

from liveavatar.errors import LiveAvatarError, MissingFilesError, ModelError
from liveavatar.weights.gguf import GGUFSource
from liveavatar.weights.gguf_header import MAGIC


def text(content):
    return struct.pack("<Q", len(content)) + content


def header(tensors=b"", count=0, values=b"", value_count=0, version=3):
    return MAGIC + struct.pack("<IQQ", version, count, value_count) + values + tensors


def tensor(name=b"a.weight", dims=(32, 2), kind=8, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def value(name, kind, content):
    return text(name) + struct.pack("<I", kind) + content


STRINGS = struct.pack("<IQ", 8, 2**40)
HEADERS = {
    "nothing": (b"", "it is empty"),
    "its letters alone": (MAGIC, "it ends within its header"),
    "an old version": (header(version=1), "version 1"),
    "another byte order": (header(version=3 << 24), "another byte order"),
    "tensors without end": (header(count=2**63), "tensors"),
    "entries without end": (header(value_count=2**62), "entries"),
    "a text without end": (header(value_count=1, values=struct.pack("<Q", 2**60) + b"x" * 99), "a text of"),
    "items without end": (header(value_count=1, values=value(b"a", 9, struct.pack("<IQ", 0, 2**60))), "items"),
    "texts without end": (header(value_count=1, values=value(b"a", 9, STRINGS)), "items"),
    "arrays of arrays": (
        header(value_count=1, values=value(b"a", 9, struct.pack("<IQ", 9, 1))),
        "an array of the type 9",
    ),
    "an unknown value": (header(value_count=1, values=value(b"a", 77, b"")), "unknown type 77"),
    "an entry twice": (header(value_count=2, values=2 * value(b"a", 0, b"\1")), "a stands there twice"),
    "alignment 3": (header(value_count=1, values=value(b"general.alignment", 4, b"\3\0\0\0")), "no power of two"),
    "a name of nothing": (header(tensor(name=b""), 1) + b"\0" * 99, "a name of 0 bytes"),
    "a name without end": (header(tensor(name=b"a" * 5000), 1) + b"\0" * 99, "a name of 5000 bytes"),
    "a name of no letters": (header(tensor(name=b"\xff\xfe"), 1) + b"\0" * 99, "can't decode"),
    "many dimensions": (header(tensor(dims=(1,) * 99), 1) + b"\0" * 99, "99 dimensions"),
    "an unknown type": (header(tensor(kind=999), 1) + b"\0" * 99, "unknown type 999"),
    "no whole blocks": (header(tensor(dims=(33, 2)), 1) + b"\0" * 99, "no blocks of 32"),
    "beyond the file": (header(tensor(offset=2**40), 1) + b"\0" * 99, "bytes are missing of a.weight"),
    "larger than the file": (header(tensor(dims=(2**60, 2**60)), 1) + b"\0" * 99, "bytes are missing of a.weight"),
    "out of line": (header(tensor(offset=7), 1) + b"\0" * 199, "does not begin where numbers may"),
    "overlapping": (header(tensor() + tensor(b"b"), 2) + b"\0" * 299, "overlaps another tensor"),
    "twice": (header(tensor() + tensor(offset=96), 2) + b"\0" * 499, "a.weight stands there twice"),
    "a safetensors file": (b"\2\0\0\0\0\0\0\0{}", "does not begin with GGUF"),
    "a web page": (b"<!DOCTYPE html><html>", "web page"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_cannot_be_are_refused(tmp_path, what):
    content, message = HEADERS[what]
    (tmp_path / "a.gguf").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ModelError, match=message) as refusal:
        GGUFSource(tmp_path / "a.gguf")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert "a.gguf" in refusal.value.what and len(str(refusal.value)) < 600


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(MissingFilesError, match="There is no file"):
        GGUFSource(tmp_path / "a.gguf")


def test_a_size_that_a_converter_remembers_must_be_that_of_the_numbers(tmp_path):
    shape = {"comfy.gguf.orig_shape.a.weight": [3, 3]}
    write_gguf(tmp_path / "a.gguf", {"a.weight": np.ones((2, 32), np.float32)}, "Q8_0", entries=shape)
    with pytest.raises(ModelError, match=r"another size of a\.weight"):
        GGUFSource(tmp_path / "a.gguf")


@given(at=st.integers(0, 400), change=st.binary(min_size=1, max_size=12), cut=st.integers(0, 900))
def test_any_damage_ends_in_numbers_or_in_a_typed_error(tmp_path_factory, at, change, cut):
    folder = tmp_path_factory.mktemp("any")
    tensors = {"a.weight": np.ones((4, 32), np.float32), "b.weight": np.ones((2, 64), np.float32)}
    entries = {"some.words": ["one", "two"], "some.numbers": [1, 2, 3], "a.flag": True, "a.text": "x"}
    write_gguf(folder / "whole.gguf", tensors, "Q4_0", entries=entries)
    content = bytearray((folder / "whole.gguf").read_bytes())
    content[at : at + len(change)] = change
    (folder / "a.gguf").write_bytes(content[: len(content) - cut])
    try:
        source = GGUFSource(folder / "a.gguf")
        assert all(tuple(source.read(key).shape) == source.shape(key) for key in source.keys())  # noqa: SIM118
        source.value("some.words")
        source.value("some.numbers")
    except LiveAvatarError as e:
        assert len(str(e)) < 1000
