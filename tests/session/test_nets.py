"""Loaded parts are shared as long as they are asked for in the same way."""

import torch
from session.tiny import TinyComponents, tiny_config

from liveavatar.engines.nets import Nets
from liveavatar.model.linear import Float8Linear
from liveavatar.model.transformer import Part
from liveavatar.storage import PLAIN, Storage, layer_saving


def test_another_format_takes_the_place_of_the_old() -> None:
    config = tiny_config(2)
    components, nets, part = TinyComponents(config), Nets(), Part.whole(config)
    plain = nets.get(components, "cpu", part, torch.float32)
    assert nets.get(components, "cpu", part, torch.float32, PLAIN) is plain
    before = nets.bytes_by_device["cpu"]

    small = nets.get(components, "cpu", part, torch.float32, Storage(weights="fp8"))
    assert any(isinstance(module, Float8Linear) for module in small.modules())
    assert nets.holds(components, "cpu", part, torch.float32, Storage(weights="fp8"))
    assert not nets.holds(components, "cpu", part, torch.float32)
    assert before - nets.bytes_by_device["cpu"] == sum(layer_saving(config, i, "fp8", 4) for i in range(2))
    assert components.loaded == [part, part]
