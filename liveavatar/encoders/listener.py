"""Who hears: a model that makes hidden states of normalised samples."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from ..errors import ModelError
from . import timing


class Listener(Protocol):
    """A wav2vec2 model, wherever it comes from.

    Attributes:
        layers, channels: hidden states it makes, the input of the first layer included, and their width.
    """

    @property
    def layers(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def states(self, samples: np.ndarray) -> list[torch.Tensor]:
        """Normalised 16 kHz samples [n] -> `layers` tensors [feature_count(n), channels]; see `hidden_states`."""
        ...


class TransformersListener:
    """A `transformers.Wav2Vec2Model` in eval mode.

    Raises:
        ModelError: a model in training mode or with other convolutions.
    """

    def __init__(self, model: Any):
        _check_model(model)
        self.model = model
        self.layers: int = model.config.num_hidden_layers + 1
        self.channels: int = model.config.hidden_size

    def states(self, samples: np.ndarray) -> list[torch.Tensor]:
        """See `hidden_states`."""
        return hidden_states(self.model, samples)


def listener_of(model: Any) -> Listener:
    """The listener itself, or a model of transformers as one."""
    return model if hasattr(model, "states") else TransformersListener(model)


def hidden_states(model: Any, samples: np.ndarray | torch.Tensor) -> list[torch.Tensor]:
    """All hidden states of `transformers.Wav2Vec2Model` for normalised 16 kHz samples [n].

    Returns:
        layers + 1 tensors [feature_count(n), C] in the model's dtype and on its device: the input of layer 1, the
        outputs of all layers but the last, and the last one's after the final layer norm. (Versions of transformers
        disagree whether their own last entry is normed, so it is taken from `last_hidden_state`, which always is.)
    """
    weight = next(model.parameters())
    values = torch.as_tensor(samples).to(device=weight.device, dtype=weight.dtype)
    with torch.inference_mode():
        out = model(values[None], output_hidden_states=True)
    return [state[0] for state in (*out.hidden_states[:-1], out.last_hidden_state)]


def _check_model(model: Any) -> None:
    if model.training:
        raise ModelError("The audio encoder is in training mode, where it drops layers at random.", "Call .eval().")
    found = (tuple(model.config.conv_kernel), tuple(model.config.conv_stride))
    if found != (timing.CONV_KERNELS, timing.CONV_STRIDES):
        raise ModelError(
            f"The audio encoder has convolutions {found[0]} with strides {found[1]}.",
            "Use a wav2vec2 model of 50 features a second, such as wav2vec2-large-xlsr-53.",
        )
