"""The names that LoRA files have for what they change, and the modules that are meant.

Files name the same tensors in several ways: PEFT's lora_A and lora_B, lora_down and lora_up of trainers, kohya's names
with underscores in place of dots, prefixes, the names that modules have in diffusers. All of them are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_PREFIX = re.compile(r"(?:(?:base_model|model|diffusion_model|transformer|module|net|pipe|dit)\.)+")
_KEY = re.compile(
    r"(?P<module>.+?)\."
    r"(?:lora[._](?P<half>A|B|down|up)(?:\.[A-Za-z0-9_-]+)?\.weight|(?P<alone>alpha|diff|diff_b))",
    re.DOTALL,
)
_HALVES = {"A": "A", "down": "A", "B": "B", "up": "B"}
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
"""Before names of trainers that have underscores in place of all dots."""
_DIFFUSERS = (
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_out.0", ".o"),
    (".to_q", ".q"),
    (".to_k", ".k"),
    (".to_v", ".v"),
    (".ffn.net.0.proj", ".ffn.0"),
    (".ffn.net.2", ".ffn.2"),
)
_DIFFUSERS_OUTSIDE = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}


def flat_names(modules: Collection[str]) -> dict[str, str]:
    """Names with underscores in place of dots -> the modules that trainers name so."""
    in_diffusers = {to_diffusers(module).replace(".", "_"): module for module in modules}
    return in_diffusers | {module.replace(".", "_"): module for module in modules}


def parse_key(key: str, flat: Mapping[str, str]) -> tuple[str, str]:
    """The module that a tensor of a LoRA belongs to, as the network names it, and what it is of it.

    Args:
        key: as the file has it.
        flat: from `flat_names`.

    Returns:
        The module ("" where it is none of `flat`, or the name is of no known form), and "A", "B", "alpha", "diff" (a
        whole difference of its weight) or "diff_b" (of its bias).
    """
    m = _KEY.fullmatch(key)
    if not m:
        return "", ""
    module, slot = m["module"], m["alone"] or _HALVES[m["half"]]
    for prefix in _FLAT:
        if module.startswith(prefix):
            return flat.get(module.removeprefix(prefix), ""), slot
    module = module[prefixes.end() :] if (prefixes := _PREFIX.match(module)) else module
    for theirs, ours in _DIFFUSERS:
        module = module.replace(theirs, ours)
    return _DIFFUSERS_OUTSIDE.get(module, module), slot


def module_in_file(key: str) -> str:
    """What a tensor of a LoRA belongs to, in the file's own words."""
    m = _KEY.fullmatch(key)
    return m["module"] if m else key


def to_diffusers(module: str) -> str:
    """The name that a module has in diffusers; its own where that is the same."""
    for theirs, ours in _DIFFUSERS_OUTSIDE.items():
        if module == ours:
            return theirs
    attention = re.fullmatch(r"(.+)\.(self|cross)_attn\.([qkvo])", module)
    if attention:
        last = "to_out.0" if attention[3] == "o" else f"to_{attention[3]}"
        return f"{attention[1]}.attn{1 if attention[2] == 'self' else 2}.{last}"
    return re.sub(r"\.ffn\.0$", ".ffn.net.0.proj", re.sub(r"\.ffn\.2$", ".ffn.net.2", module))
