"""Attention backends: tried against float32 before they are used, and refused in words."""

import importlib.util

import pytest
import torch

from liveavatar.attention_choice import check_attention, set_host_kernel
from liveavatar.errors import ModelError
from liveavatar.model.attention import SDPA, SDPA_ON_CPU, attention
from liveavatar.model.attention_backends import choose_attention

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_is_known():
    set_host_kernel(None)
    yield
    set_host_kernel(None)


def good(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def wrong(q, k, v):
    return good(q, k, v) * 1.2


def black(q, k, v):
    return torch.full_like(q, torch.nan)


def raising(q, k, v):
    raise RuntimeError("no kernel image is available for this card.\nmore")


def test_parts_of_the_keys_are_attended_to_as_the_whole() -> None:
    q, k, v = (torch.randn(n, 2, 8) for n in (5, 11, 11))
    whole = attention(q, [(k, v)])
    for cuts in ([11], [4, 7], [1, 9, 1]):
        parts = list(zip(k.split(cuts), v.split(cuts), strict=True))
        for kernel in (SDPA, SDPA_ON_CPU):
            assert torch.allclose(attention(q, parts, kernel), whole, atol=1e-6)
    batched = attention(q[None], [(k[None], v[None])])
    assert torch.equal(batched[0], whole)


@pytest.mark.parametrize("name", ["auto", "comfyui"])
def test_the_choice_of_the_program_around_is_used_where_it_is_right(name: str) -> None:
    set_host_kernel(good)
    chosen = choose_attention(name, CPU, torch.float32, 16)
    assert chosen.kernel.name == "comfyui" and chosen.error < 1e-5 and not chosen.notice
    assert choose_attention("sdpa", CPU, torch.float32, 16).kernel.name == "sdpa"


def test_what_nobody_has_chosen_is_used_only_where_it_is_asked_for() -> None:
    set_host_kernel(good, chosen=False)
    assert choose_attention("auto", CPU, torch.float32, 16).kernel.name == "sdpa"
    assert choose_attention("comfyui", CPU, torch.float32, 16).kernel.name == "comfyui"


@pytest.mark.parametrize(
    ("kernel", "why"), [(wrong, "off by 0.2"), (black, "off by nan"), (raising, "RuntimeError: no kernel image")]
)
def test_a_bad_kernel_gives_way_with_a_notice(kernel, why: str) -> None:
    set_host_kernel(kernel)
    chosen = choose_attention("auto", CPU, torch.float32, 16)
    assert chosen.kernel.name == "sdpa" and chosen.error < 1e-5
    assert why in chosen.notice and "attention is done by sdpa" in chosen.notice


def test_a_kernel_is_tried_once_on_a_device() -> None:
    calls = []
    set_host_kernel(lambda q, k, v: calls.append(q.shape) or good(q, k, v))
    assert choose_attention("auto", CPU, torch.float32, 16) is choose_attention("auto", CPU, torch.float32, 16)
    assert len(calls) == 1


def test_what_is_not_there_is_refused_before_anything_is_imported() -> None:
    with pytest.raises(ModelError, match="not known") as refused:
        check_attention("flash")
    assert "sdpa" in refused.value.nearest
    with pytest.raises(ModelError, match="inside ComfyUI alone"):
        check_attention("comfyui")
    if importlib.util.find_spec("flash_attn_interface") is None:
        with pytest.raises(ModelError, match="needs the package FlashAttention 3") as refused:
            check_attention("flash3")
        assert "or use --attention " in refused.value.nearest
    check_attention("auto")


def test_a_device_without_numbers_is_not_tried() -> None:
    assert choose_attention("auto", torch.device("meta"), torch.bfloat16, 128).error == 0
