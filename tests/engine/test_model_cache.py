"""Loaded parts are shared as long as they are asked for in the same way."""

import torch
from engine.tiny import TinyComponents, tiny_config

from liveavatar.engine.local import ModelCache
from liveavatar.model.quantize import Float8Linear
from liveavatar.model.transformer import ModelSlice
from liveavatar.planner.memory import layer_saved_bytes
from liveavatar.storage import PLAIN, StorageConfig


def test_another_format_takes_the_place_of_the_old() -> None:
    config = tiny_config(2)
    components, nets, part = TinyComponents(config), ModelCache(), ModelSlice.whole(config)
    plain = nets.get(components, "cpu", part, torch.float32)
    assert nets.get(components, "cpu", part, torch.float32, PLAIN) is plain
    before = nets.bytes_by_device["cpu"]

    small = nets.get(components, "cpu", part, torch.float32, StorageConfig(weights="fp8"))
    assert any(isinstance(module, Float8Linear) for module in small.modules())
    assert nets.is_loaded(components, "cpu", part, torch.float32, StorageConfig(weights="fp8"))
    assert not nets.is_loaded(components, "cpu", part, torch.float32)
    assert before - nets.bytes_by_device["cpu"] == sum(layer_saved_bytes(config, i, "fp8", 4) for i in range(2))
    assert components.loaded == [part, part]
