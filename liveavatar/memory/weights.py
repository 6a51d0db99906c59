"""A network's weights, kept as a `Storage` says."""

from __future__ import annotations

import re

import torch
from torch import nn

from ..model.layer import Layer
from ..model.transformer import CausalS2VTransformer
from ..storage import Held, Storage, streamed_layers
from ..weights.fill import Where
from .copies import copies_of
from .passage import Load, Passage

_OF_LAYER = re.compile(r"blocks\.(\d+)\.(cross_attn\.(?:k|v|norm_k)\.)?")
"""Names of a layer's tensors, and of those among them that only the prompt needs (`Layer.prompt_parts`)."""


def homes(layers: range, device: torch.device, storage: Storage) -> Where:
    """Where the tensors of a part with these layers are read to, by their names: the device, or the host."""
    streamed = frozenset(streamed_layers(layers, storage.streamed))
    leave = storage.prompt_weights == "leave"
    if not streamed and not leave:
        return device

    def home(name: str) -> torch.device:
        found = _OF_LAYER.match(name)
        on_host = found and (int(found[1]) in streamed or (leave and found[2]))
        return torch.device("cpu") if on_host else device

    return home


def keep_weights(net: CausalS2VTransformer, device: torch.device, storage: Storage) -> None:
    """Move the weights that do not stay on the device to the host, and let them pass through it when they work.

    Args:
        net: filled; what stays is on the device already.
        device: where it works.
        storage: what stays.

    Raises:
        HostMemoryError: the host's memory cannot hold them.
    """
    leave = storage.prompt_weights == "leave"
    streamed = streamed_layers(net.part.layers, storage.streamed)
    layers = dict(net.numbered_layers())
    if leave and layers:
        prompts = {number: Load(_within(layer.prompt_parts)) for number, layer in layers.items()}
        net.lead_prompt = Passage(prompts, copies_of(device), stays=False)
    if streamed:
        loads = {number: Load(_travelling(layers[number], leave)) for number in streamed}
        net.lead = Passage(loads, copies_of(device))


def bytes_held(net: CausalS2VTransformer) -> Held:
    """Bytes of a network's parameters and buffers, and of the slots they pass through."""
    passages = [p for p in (net.lead, net.lead_prompt) if isinstance(p, Passage)]
    everything = sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
    resident = everything - sum(p.tensor_bytes for p in passages)
    return Held(resident + sum(p.device_bytes for p in passages), sum(p.host_bytes for p in passages))


def _within(parts: tuple[nn.Module, ...]) -> list[nn.Module]:
    return [module for part in parts for module in part.modules()]


def _travelling(layer: Layer, leave: bool) -> list[nn.Module]:
    staying_away = set(_within(layer.prompt_parts)) if leave else set()
    return [module for module in layer.modules() if module not in staying_away]
