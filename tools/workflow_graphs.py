"""The example graphs, each described once: nodes in columns, their values, and which output feeds which input."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MINIATURE = "miniature (comes along)"
REAL = "liveavatar/Wan2.2-S2V-14B"
SINGLE_FILE = "wan2.2_s2v_14B_fp8_scaled.safetensors"
_NOTES = Path(__file__).with_name("workflow_notes")
_HF = "https://huggingface.co"
_WAN21, _WAN22 = "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"


def _file(repository: str, path: str, directory: str) -> dict[str, str]:
    return {"name": path.split("/")[-1], "url": f"{_HF}/{repository}/resolve/main/{path}", "directory": directory}


NETWORK_FILE = _file(_WAN22, f"split_files/diffusion_models/{SINGLE_FILE}", "diffusion_models")
LORA_FILE = _file("Quark-Vision/Live-Avatar", "liveavatar.safetensors", "loras")
TEXT_FILE = _file(_WAN21, "split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors", "text_encoders")
SOUND_FILE = _file(_WAN22, "split_files/audio_encoders/wav2vec2_large_english_fp16.safetensors", "audio_encoders")
VAE_FILE = _file(_WAN22, "split_files/vae/wan_2.1_vae.safetensors", "vae")


@dataclass(frozen=True)
class Item:
    """One node: `wires` maps its inputs to "key.output" of other nodes, `values` holds widgets that differ from the
    default."""

    key: str
    type: str
    title: str
    wires: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    models: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Graph:
    """Columns from left to right, each with a caption and its nodes from top to bottom; a note stands before them.

    The note is put together from files in workflow_notes/.
    """

    name: str
    notes: tuple[str, ...]
    columns: tuple[tuple[str, tuple[Item, ...]], ...]

    @property
    def note(self) -> str:
        """Markdown."""
        return "\n\n".join((_NOTES / f"{name}.md").read_text(encoding="utf-8").strip() for name in self.notes)


@dataclass(frozen=True)
class _Given:
    """Where picture and voice come from."""

    items: tuple[Item, ...]
    image: str
    audio: str
    mask: str = ""

    @property
    def column(self) -> tuple[str, tuple[Item, ...]]:
        return ("Picture and voice", self.items)


_SAMPLE = _Given(
    (Item("sample", "LiveAvatarSample", "Sample Portrait and Voice"),), image="sample.image", audio="sample.audio"
)
"""The pack's own: nothing to choose, nothing to find."""
_OWN = _Given(
    (
        Item("portrait", "LoadImage", "Portrait: choose yours", values={"image": "example.png"}),
        Item("voice", "LoadAudio", "Voice: choose yours", values={"audio": "voice.wav"}),
    ),
    image="portrait.IMAGE",
    audio="voice.AUDIO",
    mask="portrait.MASK",
)
"""The user's. example.png comes with ComfyUI, a voice does not."""


def _save(source: str, prefix: str) -> tuple[str, tuple[Item, ...]]:
    item = Item("save", "SaveVideo", "Save Video", {"video": f"{source}.video"}, {"filename_prefix": prefix})
    return ("Keep it", (item,))


def _sampler(given: _Given, words: str, **values: Any) -> Item:
    wires = {"model": "model.model", "positive": words, "audio": "audio.audio", "image": given.image}
    wires |= {"mask": given.mask} if given.mask else {}
    return Item("sampler", "LiveAvatarSampler", "Sampler", wires, values)


def _decode() -> Item:
    return Item("decode", "LiveAvatarDecode", "Streaming VAE Decode", {"latents": "sampler.latents"})


def _modular(name: str, *notes: str, given: _Given, model: str, prompt: str, size: str, **backend: Any) -> Graph:
    """Every part as a node of its own."""
    placed = Item("backend", "LiveAvatarBackend", "Backend", values=backend)
    load = Item("model", "LiveAvatarLoadModel", "Load Model", {"backend": "backend.backend"}, {"model": model})
    foreseen = {"model": "model.model", "image": given.image, "audio": given.audio}
    plan = Item("plan", "LiveAvatarPlan", "Plan: what will happen", foreseen, {"size": size})
    words = Item("words", "LiveAvatarTextEncode", "Text Encode", {"model": "model.model"}, {"prompt": prompt})
    inputs = {"model": "model.model", "audio": given.audio}
    audio = Item("audio", "LiveAvatarAudioFeatures", "Audio Features", inputs)
    columns = (
        given.column,
        ("Model", (placed, load)),
        ("Words, sound and plan", (words, audio, plan)),
        ("Make latents", (_sampler(given, "words.positive", size=size),)),
        ("Decode while they are made", (_decode(),)),
        _save("decode", f"video/{name}"),
    )
    return Graph(name, notes, columns)


_WALL_PROMPT = "A person with brown hair is talking in front of a blue wall."
_REAL_PROMPT = "A person sits in a bright room, looks at the camera and talks with a friendly smile."


def _real(name: str, **backend: Any) -> Graph:
    """The 14B model on devices of some kind."""
    return _modular(name, name, "plan", "files", given=_OWN, model=REAL, prompt=_REAL_PROMPT, size="704x384", **backend)


def _quickstart() -> Graph:
    """One node that does it all, on the miniature."""
    wires = {"model": "model.model", "image": _SAMPLE.image, "audio": _SAMPLE.audio}
    values = {"prompt": _WALL_PROMPT, "size": "128x128"}
    columns = (
        _SAMPLE.column,
        ("Model", (Item("model", "LiveAvatarLoadModel", "Load Model", values={"model": MINIATURE}),)),
        ("Make the video", (Item("avatar", "LiveAvatarGenerate", "Live Avatar", wires, values),)),
        _save("avatar", "video/quickstart"),
    )
    return Graph("quickstart", ("quickstart",), columns)


def _core_encoders() -> Graph:
    """Words and sound by ComfyUI's own nodes, all from single files."""
    load = Item(
        "model",
        "LiveAvatarLoadModel",
        "Load Model",
        values={
            "model": SINGLE_FILE,
            "lora": LORA_FILE["name"],
            "text_encoder": TEXT_FILE["name"],
            "audio_encoder": SOUND_FILE["name"],
            "vae": VAE_FILE["name"],
        },
        models=(NETWORK_FILE, LORA_FILE, TEXT_FILE, SOUND_FILE, VAE_FILE),
    )
    clip = {"clip_name": TEXT_FILE["name"], "type": "wan"}
    ear = {"audio_encoder_name": SOUND_FILE["name"]}
    inputs = {"model": "model.model", "audio": _OWN.audio, "audio_encoder_output": "encoded.AUDIO_ENCODER_OUTPUT"}
    columns = (
        _OWN.column,
        (
            "Models",
            (
                load,
                Item("clip", "CLIPLoader", "UMT5", values=clip, models=(TEXT_FILE,)),
                Item("ear", "AudioEncoderLoader", "wav2vec2", values=ear, models=(SOUND_FILE,)),
            ),
        ),
        (
            "Core reads and listens",
            (
                Item("words", "CLIPTextEncode", "Prompt", {"clip": "clip.CLIP"}, {"text": _REAL_PROMPT}),
                Item(
                    "encoded",
                    "AudioEncoderEncode",
                    "Encode the voice",
                    {"audio_encoder": "ear.AUDIO_ENCODER", "audio": _OWN.audio},
                ),
                Item("audio", "LiveAvatarAudioFeatures", "Audio Features", inputs),
            ),
        ),
        ("Make latents", (_sampler(_OWN, "words.CONDITIONING"),)),
        ("Decode while they are made", (_decode(),)),
        _save("decode", "video/core_encoders"),
    )
    return Graph("core_encoders", ("core_encoders",), columns)


GRAPHS = (
    _quickstart(),
    _modular("modular", "modular", "plan", given=_SAMPLE, model=MINIATURE, prompt=_WALL_PROMPT, size="128x128"),
    _real("16gb_card", memory="free after each run", allow_smaller=True),
    _real("24gb_card", memory="free after each run"),
    _real("80gb_card", devices="cuda:0"),
    _real("two_24gb_cards", engine="worker processes"),
    _real("four_24gb_cards", engine="worker processes"),
    _real("five_80gb_cards", engine="worker processes", devices="cuda:0,cuda:1,cuda:2,cuda:3,cuda:4", stages="4x1"),
    _core_encoders(),
)
