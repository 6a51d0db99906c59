"""The encoders of prompt, audio and image, and the decoder of latents.

The encoders of words and sound are loaded, used and let go; the VAE stays, because it is needed at both ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from .compiler import COMPILER
from .components import Components, load_decoder, tiny_config
from .config import MOTION_FRAMES
from .encoders.audio import (
    AudioEncoder,
    AudioFeatures,
    Tail,
    as_audio_encoder,
    encode_audio,
)
from .encoders.text import encode_text
from .events import (
    ENCODING_AUDIO,
    ENCODING_IMAGE,
    ENCODING_PROMPT,
    GENERATING,
    HEARTBEAT_SECONDS,
    LOADING_VAE,
    Callback,
    Event,
    PhaseProgress,
    ignore,
    share_event,
)
from .offload.pinned_memory import PinnedPool
from .offload.streams import AsyncHostTensor, SideStream, limit_device_memory, offload_slot
from .pose import Encode, OpenClip
from .session import cpu_threads
from .spool import Rows
from .streams import Decoder, refuse_nan, to_bytes
from .utils import to_device_async
from .vae.decoding import latent_decoder
from .vae.tile_grid import WHOLE, Tiles
from .vae.tiling import encode_tiles, open_decoder, open_encoder
from .vae.tiny import TinyDecoder
from .vae.wan import latent_scale
from .vae.wan_decoder import CompiledActivation, WanDecoder, activate
from .weights.load import watched_reads

if TYPE_CHECKING:
    from .vae.autoencoder import AutoencoderKLWan
    from .vae.decoding import LatentDecoder

_LOADED = 0.9
"""What loading the text encoder is of its phase: it has billions of numbers and reads a few prompts."""

LatentScale = tuple[torch.Tensor, torch.Tensor]
"""Mean and 1 / standard deviation of the VAE's latents, [1, 16, 1, 1, 1] float32 on the CPU."""


@dataclasses.dataclass(frozen=True)
class ExecConfig:
    """Device, dtype and threads of encoders and VAE.

    Attributes:
        device, dtype: names.
        threads: CPU threads.
        cap: see `Plan.cap`.
        compiled: whether the VAE's decoder is, too, where the network is.
        compile_optional: see `Plan.compile_optional`.
    """

    device: str
    dtype: str
    threads: int
    cap: int = 0
    compiled: bool = False
    compile_optional: bool = False

    @contextlib.contextmanager
    def active(self) -> Iterator[tuple[torch.device, torch.dtype]]:
        """Inside, nothing records gradients and the CPU has its threads."""
        limit_device_memory(self.device, self.cap)
        with torch.inference_mode(), cpu_threads(self.threads):
            yield torch.device(self.device), getattr(torch, self.dtype)


class Encoders(Protocol):
    """The encoders and the VAE of one model at one place.

    Callbacks are called with the progress, at least at the beginning; what they raise ends the work.
    """

    def encode_prompts(self, prompts: Sequence[str], callback: Callback = ignore) -> list[torch.Tensor]:
        """Features [n, text_dim] of each prompt, on the CPU; the text encoder comes and goes once for all of them."""
        ...

    def encode_audio(
        self, audio: np.ndarray | Rows, frames: int, tail: Tail, callback: Callback = ignore
    ) -> AudioFeatures:
        """Features of so many video frames; as `encoders.audio.encode_audio`. The audio encoder comes and goes."""
        ...

    def audio_encoder(self, callback: Callback = ignore) -> AudioEncoder:
        """The audio encoder itself, for sound that is heard while it is spoken; it goes with whoever holds it."""
        ...

    def load_vae(self, callback: Callback = ignore) -> None:
        """Have the VAE; otherwise whatever needs it first loads it."""
        ...

    def encode_image(
        self, pixels: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """An image [1, 3, 1, H, W] in [-1, 1] as latents on the CPU: of itself [16, 1, h, w], and of it standing still
        for 73 frames [16, 19, h, w]; encoded in so many tiles."""
        ...

    def encode_motion(self, pixels: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE) -> torch.Tensor:
        """The last frames of a video [1, 3, 73, H, W] in [-1, 1] as latents on the CPU [16, 19, h, w]; as
        `encode_image`."""
        ...

    def pose_encoder(self, size: tuple[int, int], tiles: Tiles = WHOLE) -> OpenClip:
        """What encodes a pose video, clip by clip (see `PoseLatents`), in whichever thread asks.

        Args:
            size: height and width of a latent frame.
            tiles: in which it is encoded.
        """
        ...

    def decoder(self, motion: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE) -> Decoder:
        """A decoder for a video that follows the motion latents [16, 19, h, w]; each has a state of its own.

        Frames come as bytes. The callback is called with notices, and with the bare phase again and again, also while
        it decodes.
        """
        ...

    def latent_scale(self) -> LatentScale:
        """What latents were normalised by."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of weights that are loaded now."""
        ...

    def release(self) -> None:
        """Give back all memory; it comes back when needed."""
        ...


class LocalEncoders:
    """The encoders and the VAE of a model, in this process (see `Encoders`)."""

    def __init__(self, components: Components, exec_config: ExecConfig):
        self.components, self.exec_config = components, exec_config
        self._vae: AutoencoderKLWan | None = None
        self._pinned = PinnedPool()
        self._small: torch.nn.Module | None = None
        self._decoder: LatentDecoder | None = None

    def encode_prompts(self, prompts: Sequence[str], callback: Callback = ignore) -> list[torch.Tensor]:
        """See `Encoders`."""
        callback(share_event(ENCODING_PROMPT, 0.0))
        with self.exec_config.active() as where:
            with _loading(callback, ENCODING_PROMPT, _LOADED):
                model, tokenizer = self.components.text_encoder(*where)
            contexts, length = [], self.components.config.text_len
            with heartbeat(model, callback, share_event(ENCODING_PROMPT, _LOADED)) as send:
                for number, prompt in enumerate(prompts):
                    send(share_event(ENCODING_PROMPT, _LOADED + (1 - _LOADED) * number / len(prompts)))
                    contexts.append(encode_text(model, tokenizer, prompt, length).cpu())
            gone = weakref.ref(model)
            del model
        self._release_encoder(gone)
        return contexts

    def encode_audio(
        self, audio: np.ndarray | Rows, frames: int, tail: Tail, callback: Callback = ignore
    ) -> AudioFeatures:
        """See `Encoders`."""
        callback(share_event(ENCODING_AUDIO, 0.0))
        with self.exec_config.active() as where:
            with _loading(callback, ENCODING_AUDIO, 0.0):
                model = self.components.audio_encoder(*where)
            with heartbeat(model, callback, share_event(ENCODING_AUDIO, 0.0)) as beat:
                features = encode_audio(model, audio, frames, tail=tail, callback=beat)
            gone = weakref.ref(model)
            del model
        self._release_encoder(gone)
        return features

    def audio_encoder(self, callback: Callback = ignore) -> AudioEncoder:
        """See `Encoders`."""
        callback(share_event(ENCODING_AUDIO, 0.0))
        with self.exec_config.active() as where:
            return as_audio_encoder(self.components.audio_encoder(*where))

    def load_vae(self, callback: Callback = ignore) -> None:
        """See `Encoders`."""
        callback(share_event(LOADING_VAE, 0.0))
        with _loading(callback, LOADING_VAE):
            _ = self.vae

    def encode_image(
        self, pixels: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Encoders`."""
        callback(share_event(ENCODING_IMAGE, 0.0))
        vae = self.vae
        with self.exec_config.active(), heartbeat(vae.encoder, callback, share_event(ENCODING_IMAGE, 0.0)):
            reference = encode_tiles(vae, pixels, tiles)[0].cpu()
            motion = encode_tiles(vae, pixels.expand(-1, -1, MOTION_FRAMES, -1, -1), tiles)[0].cpu()
        callback(share_event(ENCODING_IMAGE, 1.0))
        return reference, motion

    def pose_encoder(self, size: tuple[int, int], tiles: Tiles = WHOLE) -> OpenClip:
        """See `Encoders`."""
        vae, exec_config = self.vae, self.exec_config

        def open_clip() -> Encode:
            encoder = open_encoder(vae, size, tiles)

            def encode(pictures: np.ndarray, callback: Callback) -> torch.Tensor:
                with exec_config.active() as (device, _), heartbeat(vae.encoder, callback, Event(GENERATING)):
                    rgb = to_device_async(torch.from_numpy(pictures), device).permute(3, 0, 1, 2).contiguous()
                    return encoder(rgb[None].float().div(255.0).mul(2.0).sub(1.0))[0]

            return encode

        return open_clip

    def encode_motion(self, pixels: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE) -> torch.Tensor:
        """See `Encoders`."""
        vae = self.vae
        with self.exec_config.active(), heartbeat(vae.encoder, callback, share_event(ENCODING_IMAGE, 1.0)):
            return encode_tiles(vae, pixels, tiles)[0].cpu()

    def decoder(self, motion: torch.Tensor, callback: Callback = ignore, tiles: Tiles = WHOLE) -> Decoder:
        """See `Encoders`; there are no notices."""
        if self._decoder is None:
            self._decoder = self._open_decoder()
        decodes_whole = tiny_config(self.components) is not None
        tiles = WHOLE if decodes_whole else tiles
        threads = self.exec_config.threads
        return vae_decoder(self._decoder, motion, threads, tiles, callback, self._pinned, as_bytes=True)

    def latent_scale(self) -> LatentScale:
        """See `Encoders`."""
        mean, inverse_std = (v.cpu().float() for v in latent_scale(self.vae))
        return mean, inverse_std

    @property
    def nbytes(self) -> int:
        """See `Encoders`."""
        parts = (self._vae, self._small)
        return sum(p.nbytes for part in parts if part is not None for p in part.parameters())

    def release(self) -> None:
        """See `Encoders`."""
        self._vae = self._small = self._decoder = None
        self._pinned.clear()

    @property
    def vae(self) -> AutoencoderKLWan:
        """The VAE, loaded when first asked for."""
        if self._vae is None:
            with self.exec_config.active() as where:
                self._vae = self.components.vae(*where)
        return self._vae

    def _open_decoder(self) -> LatentDecoder:
        """The one that works in place of the VAE's own, or that."""
        with self.exec_config.active() as where:
            self._small = small = load_decoder(self.components, *where)
            if isinstance(small, TinyDecoder):
                return small
            compiled = self.exec_config.compiled and where[0].type == "cuda"
            activation = CompiledActivation(COMPILER, self.exec_config.compile_optional) if compiled else activate
            return WanDecoder(small or self.vae, activation)

    def _release_encoder(self, encoder: weakref.ref[Any]) -> None:
        """Return the memory of an encoder whose last reference is gone; only one with cycles has to be collected."""
        if encoder() is not None:
            gc.collect()
        if torch.device(self.exec_config.device).type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _loading(callback: Callback, phase: str, width: float = 1.0) -> Iterator[None]:
    """Calls back while weights are read inside; all of them are the first `width` of the phase."""
    progress = PhaseProgress(callback, phase)
    with watched_reads(lambda nbytes, share: progress(width * share)):
        yield


@contextlib.contextmanager
def heartbeat(model: torch.nn.Module, callback: Callback, event: Event) -> Iterator[Callback]:
    """Sends the latest event again while a model computes, from before its layers, so that the callback can cancel it.

    Args:
        model: computes inside.
        callback: called in the thread that computes; what it raises ends the computation.
        event: the first one.

    Yields:
        The callback that is to be called with further events.
    """
    latest, sent, own = event, time.monotonic(), threading.get_ident()

    def send(event: Event) -> None:
        nonlocal latest, sent
        latest, sent = event, time.monotonic()
        callback(event)

    def again(*_: object) -> None:
        if time.monotonic() - sent > HEARTBEAT_SECONDS and threading.get_ident() == own:  # others may share the model
            send(latest)

    hooks = [m.register_forward_pre_hook(again) for m in model.modules() if not any(m.children())]
    try:
        yield send
    finally:
        for hook in hooks:
            hook.remove()


def vae_decoder(
    vae: AutoencoderKLWan | LatentDecoder,
    motion: torch.Tensor,
    threads: int,
    tiles: Tiles = WHOLE,
    callback: Callback = ignore,
    pinned: PinnedPool | None = None,
    *,
    as_bytes: bool = False,
) -> Decoder:
    """A decoder with a state of its own; the VAE may be shared.

    On CUDA it works beside whatever else the device does, and waits for its own frames only.

    Args:
        motion: latents [16, >= 7, h, w] of what came before the video.
        threads: CPU threads.
        tiles: rows and columns; what those of a GPU remember lies on the host while they wait for their turn.
        callback: called with the bare phase again and again while the VAE works; what it raises ends the work.
        pinned: where that memory of the host is from; None: it is made for this decoder.
        as_bytes: whether frames leave the device as bytes, a quarter of what floats are.
    """
    decoder = latent_decoder(vae)
    stream = SideStream(decoder.device)

    @contextlib.contextmanager
    def at_work() -> Iterator[None]:
        beating = heartbeat(decoder.module, callback, Event(GENERATING))
        with torch.inference_mode(), cpu_threads(threads), stream.active(), beating:
            yield

    with at_work():
        slot = functools.partial(offload_slot, decoder.device, pinned)
        decode_tiles = open_decoder(decoder, motion[None], tiles, slot)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        with at_work():
            pixels = decode_tiles(latents)
            if not as_bytes:
                return AsyncHostTensor.copy_of(pixels).wait()
            frames, nan = to_bytes(pixels)
            copied = AsyncHostTensor.copy_of(frames.permute(1, 2, 3, 0))
            refuse_nan(bool(AsyncHostTensor.copy_of(nan).wait()))
            return copied.wait().permute(3, 0, 1, 2)

    return decode
