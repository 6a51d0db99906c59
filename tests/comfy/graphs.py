"""Graphs in API format that the tests queue, and the inputs they name."""

from __future__ import annotations

import copy
import math
import shutil
import wave
from pathlib import Path
from typing import Any

from live_server import PACK

ASSETS = PACK / "liveavatar" / "mini" / "assets"
PORTRAIT, OTHER_PORTRAIT, VOICE, LONG_VOICE, CLICK = "face.png", "mirrored.png", "short.wav", "long.wav", "click.wav"
SECONDS, LONG_SECONDS = 1.9, 12.0
SIZE = "128x128"

Graph = dict[str, dict[str, Any]]


def write_inputs(folder: Path) -> None:
    """The files that the graphs name: two portraits; the project's voice, cut short, repeated, and next to nothing."""
    from PIL import Image, ImageOps

    shutil.copy(ASSETS / "portrait.png", folder / PORTRAIT)
    shutil.copy(ASSETS / "portrait.png", folder / "example.png")  # a picture of this name comes with ComfyUI
    with Image.open(ASSETS / "portrait.png") as picture:
        ImageOps.mirror(picture.convert("RGB")).save(folder / OTHER_PORTRAIT)
    for name, seconds in ((VOICE, SECONDS), (LONG_VOICE, LONG_SECONDS), (CLICK, 0.01)):
        _write_voice(folder / name, seconds)


def frames_of(seconds: float) -> int:
    """Frames of a video of so much sound."""
    return math.ceil(round(seconds * 25, 6))


def modular(**given: Any) -> Graph:
    """Every part as its own node. Keys of `given` set widgets: picture, voice, seconds, prompt, size, seed, steps."""
    said = _defaults(given)
    sampling = {key: said[key] for key in ("size", "steps", "seed")}
    return {
        "picture": node("LoadImage", image=said["picture"]),
        "voice": node("LoadAudio", audio=said["voice"]),
        "model": _model(),
        "text": node("LiveAvatarTextEncode", model=["model", 0], prompt=said["prompt"]),
        "audio": node("LiveAvatarAudioFeatures", model=["model", 0], audio=["voice", 0], seconds=said["seconds"]),
        "sampler": node(
            "LiveAvatarSampler",
            model=["model", 0],
            positive=["text", 0],
            audio=["audio", 0],
            image=["picture", 0],
            fit="cover",
            sink="drawn from the seed",
            sink_distance=30,
            **sampling,
        ),
        "decode": node("LiveAvatarDecode", latents=["sampler", 0], vae="automatic", filename_prefix="LiveAvatar"),
        **_ends("decode"),
    }


def two_parts(**given: Any) -> Graph:
    """A video, and one that goes on from it with another voice, both with core Save Video; the state as a file."""
    graph = modular(**given)
    graph["sampler"]["inputs"]["keep_state"] = True
    graph["keep"] = node("LiveAvatarSaveState", state=["sampler", 1], filename_prefix="state")
    graph["voice2"] = node("LoadAudio", audio=VOICE)
    graph["audio2"] = node("LiveAvatarAudioFeatures", model=["model", 0], audio=["voice2", 0], seconds=0.5)
    links = {"state": ["sampler", 1], "audio": ["audio2", 0], "keep_state": False}
    graph["sampler2"] = node("LiveAvatarSampler", **graph["sampler"]["inputs"] | links)
    graph["decode2"] = node("LiveAvatarDecode", latents=["sampler2", 0], vae="automatic", filename_prefix="second")
    graph["receipt2"] = node("PreviewAny", source=["decode2", 1])
    return graph


def one_node(**given: Any) -> Graph:
    """The all-in-one node, with the same words as `modular`."""
    said = _defaults(given)
    asked = {key: said[key] for key in ("prompt", "size", "steps", "seed", "seconds")}
    links = {"model": ["model", 0], "image": ["picture", 0], "audio": ["voice", 0]}
    return {
        "picture": node("LoadImage", image=said["picture"]),
        "voice": node("LoadAudio", audio=said["voice"]),
        "model": _model(),
        "avatar": node("LiveAvatarGenerate", **links, **asked, filename_prefix="LiveAvatar"),
        **_ends("avatar"),
    }


def two_speakers(**given: Any) -> Graph:
    """Two people by the all-in-one node: the pack's picture of two, with masks of core, a white square on black."""
    graph = one_node(**{"size": "256x128", **given})
    del graph["picture"]
    graph["pair"] = node("LiveAvatarSamplePair")
    graph["black"] = node("SolidMask", value=0.0, width=512, height=256)
    graph["white"] = node("SolidMask", value=1.0, width=256, height=256)
    masks = {"destination": ["black", 0], "source": ["white", 0], "y": 0, "operation": "add"}
    graph |= {side: node("MaskComposite", x=x, **masks) for side, x in (("left", 0), ("right", 256))}
    sounds = {"audio.audio_1": ["pair", 1], "audio.audio_2": ["voice", 0]}
    graph["speakers"] = node(
        "LiveAvatarSpeakers", **sounds, **{"mask.mask_1": ["left", 0], "mask.mask_2": ["right", 0]}
    )
    graph["avatar"]["inputs"] |= {"image": ["pair", 0], "audio": ["speakers", 0]}
    return graph


def plan(**given: Any) -> Graph:
    """What would be made, and nothing more."""
    said = _defaults(given)
    asked = {key: said[key] for key in ("size", "steps", "seconds")}
    return {
        "picture": node("LoadImage", image=said["picture"]),
        "voice": node("LoadAudio", audio=said["voice"]),
        "model": _model(),
        "plan": node("LiveAvatarPlan", model=["model", 0], image=["picture", 0], audio=["voice", 0], **asked),
    }


def changed(graph: Graph, node: str, **inputs: Any) -> Graph:
    """The same graph with other inputs at one node."""
    fresh = copy.deepcopy(graph)
    fresh[node]["inputs"].update(inputs)
    return fresh


def _defaults(given: dict[str, Any]) -> dict[str, Any]:
    said = {
        "picture": PORTRAIT,
        "voice": VOICE,
        "seconds": 0.0,
        "prompt": "A happy woman talks in front of a blue wall.",
        "size": SIZE,
        "steps": 4,
        "seed": 7,
    }
    unknown = given.keys() - said.keys()
    if unknown:
        raise KeyError(f"no such widget: {sorted(unknown)}")
    return said | given


def _model() -> dict[str, Any]:
    automatic = dict.fromkeys(("lora", "text_encoder", "audio_encoder", "vae", "precision"), "automatic")
    return node("LiveAvatarLoadModel", model="miniature (comes along)", **automatic)


def _ends(puller: str) -> Graph:
    return {
        "save": node("SaveVideo", video=[puller, 0], filename_prefix="video/LiveAvatar", format="auto", codec="auto"),
        "receipt": node("PreviewAny", source=[puller, 1]),
    }


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _write_voice(path: Path, seconds: float) -> None:
    with wave.open(str(ASSETS / "voice.wav")) as whole:
        frames, rate = whole.readframes(whole.getnframes()), whole.getframerate()
        layout = whole.getparams()
    wanted = round(seconds * rate) * layout.sampwidth * layout.nchannels
    with wave.open(str(path), "wb") as file:
        file.setparams(layout)
        file.writeframes((frames * (wanted // len(frames) + 1))[:wanted])


def seconds_of(path: Path) -> float:
    """Length of a wav file."""
    with wave.open(str(path)) as file:
        return file.getnframes() / file.getframerate()
