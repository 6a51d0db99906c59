"""Reading checkpoints: what is there is read exactly, what is damaged or dangerous is refused by name."""

import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from liveavatar.errors import MissingFilesError, ModelError
from liveavatar.weights.source import DictSource, RenamedSource, SafetensorsSource, TorchSource

TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.ones(3, dtype=torch.bfloat16),
    "b.weight": torch.full((2, 2), 7.0),
}


def write_shards(folder, tensors=TENSORS):
    """Two shards with their index; gives the index path."""
    names = sorted(tensors)
    weight_map = {n: f"model-0000{1 + (i > 0)}-of-00002.safetensors" for i, n in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def assert_reads_all(source, tensors=TENSORS):
    assert source.keys() == set(tensors)
    for name, expected in tensors.items():
        assert source.shape(name) == tuple(expected.shape)
        actual = source.read(name)
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


def test_one_file_reads_exactly(tmp_path):
    save_file(TENSORS, tmp_path / "one.safetensors", metadata={"made": "here"})
    source = SafetensorsSource(tmp_path / "one.safetensors")
    assert_reads_all(source)
    assert source.metadata() == {"made": "here"}
    assert_reads_all(SafetensorsSource(tmp_path))


def test_shards_read_exactly_by_folder_and_by_index(tmp_path):
    index = write_shards(tmp_path)
    assert_reads_all(SafetensorsSource(tmp_path))
    assert_reads_all(SafetensorsSource(index))


def test_torch_file_reads_exactly_in_both_of_its_formats(tmp_path):
    for zipped in (True, False):
        torch.save(TENSORS, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        assert_reads_all(TorchSource(tmp_path / "w.pth"))


def test_renamed_source_reads_under_new_names_and_drops():
    source = RenamedSource(DictSource(TENSORS), lambda k: f"x.{k}" if k.startswith("a") else None)
    assert_reads_all(source, {f"x.{k}": v for k, v in TENSORS.items() if k.startswith("a")})


def test_two_tensors_with_one_name_are_refused():
    with pytest.raises(ModelError, match="twice"):
        RenamedSource(DictSource(TENSORS), lambda k: "same")


def test_missing_shard_is_named_at_once(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingFilesError, match="model-00002-of-00002"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_shard_is_named(tmp_path, keep):
    write_shards(tmp_path)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(ModelError, match="model-00001-of-00002"):
        SafetensorsSource(tmp_path).read("a.bias")


def test_index_that_names_absent_tensors_is_refused(tmp_path):
    index = write_shards(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="ghost"):
        SafetensorsSource(tmp_path).shape("ghost")


@pytest.mark.parametrize(
    "text", ["", "not json", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../up.safetensors"}}']
)
def test_broken_index_is_refused(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file, not weights\n" * 9])
@pytest.mark.parametrize("kind", [SafetensorsSource, TorchSource])
def test_empty_or_text_file_is_refused(tmp_path, content, kind):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        kind(tmp_path / "w.safetensors")


@given(junk=st.binary(max_size=200))
def test_any_bytes_are_refused_with_a_typed_error(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("junk") / "w.safetensors"
    path.write_bytes(junk)
    for kind in (SafetensorsSource, TorchSource):
        with pytest.raises(ModelError):
            assert kind(path).keys()  # an empty but valid safetensors header is no error, and no tensors


@pytest.mark.parametrize("kind", [SafetensorsSource, TorchSource])
def test_absent_path_is_missing_files(tmp_path, kind):
    with pytest.raises(MissingFilesError, match="nowhere"):
        kind(tmp_path / "nowhere")


def test_folder_without_weights_or_with_several_sets_is_refused(tmp_path):
    with pytest.raises(MissingFilesError):
        SafetensorsSource(tmp_path)
    for name in "ab":
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match="several"):
        SafetensorsSource(tmp_path)


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("how", ["pickle", "zip", "old"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, how):
    path, target = tmp_path / "w.pth", tmp_path / "exploded"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"a": Bomb(target)}))
    else:
        torch.save({"a": Bomb(target)}, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ModelError, match=r"w\.pth"):
        TorchSource(path)
    assert not target.exists()


def test_truncated_torch_file_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ModelError, match=r"w\.pth"):
        TorchSource(path)


def test_torch_file_that_is_no_flat_dictionary_is_refused(tmp_path):
    torch.save({"state": TENSORS}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="flat"):
        TorchSource(tmp_path / "w.pth")
