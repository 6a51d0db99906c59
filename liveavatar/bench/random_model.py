"""Networks of the real shapes with random weights, made on the device they work on.

Every tensor is drawn where the network computes, in the working dtype, one at a time: no host ever holds a model. What
lives on the host is transferred there, and what is kept in eight bits is packed as weights from files are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import nn

from ..components import MINI_FOLDER
from ..config import PRESETS
from ..errors import ModelError
from ..mini.seeded import SeededSource
from ..mini.untrained import VAE
from ..model.quantize import quantize_linears
from ..model.transformer import CausalS2VTransformer, ModelSlice, empty_transformer
from ..storage import WeightFormat
from ..weights.load import DType, TensorDevice, fill
from ..weights.settings import vae_weights

if TYPE_CHECKING:
    from ..vae.autoencoder import AutoencoderKLWan

M = TypeVar("M", bound=nn.Module)

SEED = 14
"""Of all weights."""


class RandomComponents:
    """The network and the VAE of a preset (see `liveavatar.components.Components`); it has no encoders.

    Args:
        name: of the preset, see `liveavatar.config.PRESETS`.
        maker: the device that draws the numbers.

    Raises:
        ModelError: no such preset.
    """

    trained = False

    def __init__(self, name: str, maker: torch.device | str):
        if name not in PRESETS:
            raise ModelError(f"The shapes of {name!r} are not known.", f"Use {', '.join(PRESETS)}.")
        self.name, self.config, self.maker = name, PRESETS[name], torch.device(maker)

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: DType, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        net = empty_transformer(self.config, model_slice, weights)
        return self._filled(net, device, dtype)

    def vae(self, device: torch.device | str, dtype: torch.dtype, suited: bool = True) -> AutoencoderKLWan:
        """The VAE; `suited`: in the form that is fastest on the device."""
        from ..vae.wan import build_vae, optimize_layout

        with torch.device("meta"):
            vae = build_vae(**self._vae_settings())
        filled = self._filled(vae, device, dtype)
        return optimize_layout(filled) if suited else filled

    def text_encoder(self, device: torch.device | str, dtype: torch.dtype) -> NoReturn:
        raise self._no_encoders()

    def tokenizer(self) -> NoReturn:
        raise self._no_encoders()

    def audio_encoder(self, device: torch.device | str, dtype: torch.dtype) -> NoReturn:
        raise self._no_encoders()

    def describe(self) -> str:
        return f"{self.name}: random weights of seed {SEED}, made on {self.maker}"

    def _vae_settings(self) -> dict[str, Any]:
        if self.name == "mini":
            return dict(vae_weights(MINI_FOLDER / "vae")[1])
        return VAE if self.name == "untrained" else {}

    def _filled(self, module: M, device: TensorDevice, dtype: DType) -> M:
        shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        made = dtype if isinstance(dtype, torch.dtype) else torch.float32
        fill(module, SeededSource(shapes, SEED, None, self.maker, made), dtype=dtype, device=device)
        return module

    def _no_encoders(self) -> ModelError:
        return ModelError("Random networks have no encoders.", "Give the material, or use mini or untrained.")


class KeptComponents(RandomComponents):
    """Random networks that stay on their device from one measurement to the next: their weights are made once.

    Asked for in fp8 or int8 after plain, the same matrices are brought into that format in place, so that never both
    are there. Only networks that lie on one device as a whole are kept; what is partly on the host is made anew.
    """

    def __init__(self, name: str, maker: torch.device | str):
        super().__init__(name, maker)
        self._kept: dict[tuple[ModelSlice, str, DType], tuple[CausalS2VTransformer, WeightFormat]] = {}

    def transformer(
        self, model_slice: ModelSlice, device: TensorDevice, dtype: DType, weights: WeightFormat = "plain"
    ) -> CausalS2VTransformer:
        if callable(device):
            self.forget()
            return super().transformer(model_slice, device, dtype, weights)
        key = (model_slice, str(device), dtype)
        net, has = self._kept.pop(key, (None, weights))  # a conversion that breaks off leaves nothing half done
        if net is not None and has == "plain" != weights:
            quantize_linears(net, weights)
        elif net is None or has != weights:
            net = None  # freed before the new one is made
            net = super().transformer(model_slice, device, dtype, weights)
        self._kept[key] = net, weights
        return net

    def forget(self) -> None:
        """Give the weights back."""
        self._kept.clear()
