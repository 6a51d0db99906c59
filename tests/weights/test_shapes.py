"""The table of the network's tensors against the network's modules."""

import dataclasses

import pytest

from liveavatar.config import MINI, UNTRAINED, WAN2_2_S2V_14B, ModelConfig
from liveavatar.errors import MissingFilesError, ModelError
from liveavatar.model.transformer import ModelSlice, empty_transformer
from liveavatar.weights.load import check
from liveavatar.weights.shapes import check_shapes, transformer_shapes

ODD = ModelConfig(dim=48, ffn_dim=80, num_heads=6, num_layers=2, in_dim=5, out_dim=7, cond_dim=3, num_audio_token=3,
                  audio_inject_layers=(1,))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A source of tensors of which only the shapes are known."""

    shapes: dict[str, tuple[int, ...]]

    def keys(self) -> frozenset[str]:
        return frozenset(self.shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        return self.shapes[key]

    def read(self, key: str):
        raise NotImplementedError

    def describe(self) -> str:
        return "shapes"


@pytest.mark.parametrize("config", [MINI, UNTRAINED, WAN2_2_S2V_14B, ODD], ids=["mini", "untrained", "14B", "odd"])
def test_they_are_exactly_what_the_modules_are_filled_with(config):
    shapes = transformer_shapes(config)
    chosen = check(empty_transformer(config, ModelSlice.whole(config)), Shapes(shapes))
    assert {name for parts in chosen.values() for name in parts} == set(shapes)


def test_a_source_that_lacks_one_or_has_another_is_refused():
    shapes = transformer_shapes(UNTRAINED)
    check_shapes(shapes, Shapes(shapes | {"more": (1,)}))
    with pytest.raises(MissingFilesError, match=r"lacks 1 of the tensors this model needs: head\.head\.bias"):
        check_shapes(shapes, Shapes({name: shape for name, shape in shapes.items() if name != "head.head.bias"}))
    with pytest.raises(ModelError, match=r"head\.head\.bias in shapes has shape \[65\]; this model needs \[64\]"):
        check_shapes(shapes, Shapes(shapes | {"head.head.bias": (65,)}))
