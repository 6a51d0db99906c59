"""A network's weights, kept as a `Storage` says."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import nn

from ..model.layer import Layer
from ..model.transformer import CausalS2VTransformer
from ..storage import Held, Storage, streamed_layers
from ..weights.fill import Where
from .copies import copies_of
from .load import Load
from .passage import Passage
from .stock import Copy, Packed, Stock

_OF_LAYER = re.compile(r"blocks\.(\d+)\.(cross_attn\.(?:k|v|norm_k)\.)?")
"""Names of a layer's tensors, and of those among them that only the prompt needs (`Layer.prompt_parts`)."""
Read = Callable[[Where], CausalS2VTransformer]
"""Gives a part of a network with its tensors where they are wanted."""


def homes(layers: range, device: torch.device, storage: Storage, away: str = "cpu") -> Where:
    """Where the tensors of a part with these layers are read to, by their names: the device, or the host.

    Args:
        layers: of the part.
        device: where it works.
        storage: what stays there.
        away: the place of what does not.
    """
    streamed = frozenset(streamed_layers(layers, storage.streamed))
    leave = storage.prompt_weights == "leave"
    if not streamed and not leave:
        return device

    def home(name: str) -> torch.device:
        found = _OF_LAYER.match(name)
        on_host = found and (int(found[1]) in streamed or (leave and found[2]))
        return torch.device(away) if on_host else device

    return home


def read_weights(
    read: Read, layers: range, device: torch.device, storage: Storage, stock: Stock, name: str
) -> CausalS2VTransformer:
    """A part, ready to work; what of it lives on the host comes from a stock, and is read where that has none of it.

    Args:
        read: reads the part.
        layers: of the part.
        device: where it works.
        storage: what stays there.
        stock: of the network's working dtype and format.
        name: of that dtype and format, for the stock.

    Raises:
        HostMemoryError: the host's memory cannot hold what lives there.
        Whatever `read` raises.
    """
    staying = homes(layers, device, storage, away="meta")
    net = read(staying)
    if staying is device:
        return net

    def travelling() -> list[Load]:
        other = read(homes(layers, torch.device("meta"), storage))
        return [Load(modules) for group in _travellers(other, storage) for modules in group.values()]

    copy = stock.copy(f"{name} {layers} {storage.prompt_weights} {storage.streamed}", device, travelling)
    keep_weights(net, device, storage, copy)
    return net


def keep_weights(net: CausalS2VTransformer, device: torch.device, storage: Storage, copy: Copy | None = None) -> None:
    """Let the weights that do not stay on the device live on the host, and pass through it when they work.

    Args:
        net: filled; what stays is on the device already.
        device: where it works.
        storage: what stays.
        copy: what does not, which the network need not have then; None: it is moved from the network.

    Raises:
        HostMemoryError: the host's memory cannot hold them.
    """
    prompts, streamed = _travellers(net, storage)
    parts = iter(copy.parts() if copy else ())

    def loads(group: Group) -> dict[int, Load]:
        return {number: _load(modules, next(parts, None)) for number, modules in group.items()}

    if prompts:
        net.lead_prompt = Passage(loads(prompts), copies_of(device), stays=False, copy=copy)
    if streamed:
        net.lead = Passage(loads(streamed), copies_of(device), copy=copy)


def _load(modules: list[nn.Module], part: Packed | None) -> Load:
    if part is None:
        return Load(modules)
    rows, packed = part
    load = Load(modules, rows)
    load.lie_in(packed)
    return load


def copy_of(net: CausalS2VTransformer) -> Copy | None:
    """What a network has from a stock."""
    return next((p.copy for p in (net.lead, net.lead_prompt) if isinstance(p, Passage)), None)


def bytes_held(net: CausalS2VTransformer) -> Held:
    """Bytes of a network's parameters and buffers, and of the slots they pass through."""
    passages = [p for p in (net.lead, net.lead_prompt) if isinstance(p, Passage)]
    everything = sum(t.nbytes for t in (*net.parameters(), *net.buffers()))
    resident = everything - sum(p.tensor_bytes for p in passages)
    return Held(resident + sum(p.device_bytes for p in passages), sum(p.host_bytes for p in passages))


Group = dict[int, list[nn.Module]]
"""Layer -> modules of it that travel together."""


def _travellers(net: CausalS2VTransformer, storage: Storage) -> tuple[Group, Group]:
    """What only the prompt needs, and the layers that are streamed; each as far as it does not stay on the device."""
    layers, leave = dict(net.numbered_layers()), storage.prompt_weights == "leave"
    prompts = {number: _within(layer.prompt_parts) for number, layer in layers.items()} if leave else {}
    streamed = streamed_layers(net.part.layers, storage.streamed)
    return prompts, {number: _travelling(layers[number], leave) for number in streamed}


def _within(parts: tuple[nn.Module, ...]) -> list[nn.Module]:
    return [module for part in parts for module in part.modules()]


def _travelling(layer: Layer, leave: bool) -> list[nn.Module]:
    staying_away = set(_within(layer.prompt_parts)) if leave else set()
    return [module for module in layer.modules() if module not in staying_away]
