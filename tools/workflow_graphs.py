"""The example graphs, each described once: nodes in columns, their values, and which output feeds which input.

Captions and notes are in English and Chinese, because a workflow has one text for all; names of nodes are left to the
language of ComfyUI.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MINIATURE = "miniature (comes along)"
REAL = "liveavatar/Wan2.2-S2V-14B"
SINGLE_FILE = "wan2.2_s2v_14B_fp8_scaled.safetensors"
FREE, WORKERS = "free after each run", "worker processes"
NOTE = "note"
"""The key of the note that every graph has."""
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
    default.

    Attributes:
        title: of this very node; empty where its own name says enough.
        above: room over it, for wires that pass.
        under: keys of nodes to its left under whose wires it begins.
        past: key of a node at the top of a later column; wires of this node pass beneath it.
    """

    key: str
    type: str
    wires: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    models: tuple[dict[str, str], ...] = ()
    title: str = ""
    above: int = 0
    under: tuple[str, ...] = ()
    past: str = ""


Group = tuple[str, tuple[Item, ...]]
"""A caption and its nodes, from top to bottom; without a caption no frame is drawn."""
Column = tuple[Group, ...]
READ_ME: Group = ("", (Item(NOTE, "MarkdownNote", title="Read me · 说明"),))


@dataclass(frozen=True)
class Graph:
    """Columns from left to right.

    Attributes:
        name: of its files, behind their place in the list.
        sentence: what tells it from the others; written on its thumbnail.
        notes: files in workflow_notes/ that make the note.
        columns: groups of nodes.
        app: what a person sees of it in ComfyUI's app mode: ("key.widget" to fill in, keys of what comes out).
        width: of its nodes, but for `widths` by type.
        gap: between columns, where wires turn.
    """

    name: str
    sentence: str
    notes: tuple[str, ...]
    columns: tuple[Column, ...]
    app: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    width: int = 290
    gap: int = 80
    widths: dict[str, int] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """Markdown."""
        return "\n\n".join((_NOTES / f"{name}.md").read_text(encoding="utf-8").strip() for name in self.notes)

    @property
    def items(self) -> list[Item]:
        """All nodes but the note."""
        return [item for column in self.columns for _, items in column for item in items if item.key != NOTE]

    def item(self, key: str) -> Item:
        """A node by its key."""
        return next(item for item in self.items if item.key == key)


SAMPLE, VOICE, INPUTS, MODEL = "Sample · 示例", "Voice · 语音", "Inputs · 输入", "Model · 模型"
DEVICES, PLAN, ENCODE = "Devices · 设备", "Plan · 方案", "Encode · 编码"
TALK = "Live · 实时"
MASKS, SPEAK = "Masks · 遮罩", "Speakers · 说话者"
LATENTS, DECODE, MAKE, KEEP = "Latents · 采样", "Decode · 解码", "Video · 视频", "Save · 保存"

_SAMPLE = Item("sample", "LiveAvatarSample")
"""The pack's own portrait and voice: nothing to choose, nothing to find."""
_PORTRAIT = Item("portrait", "LoadImage", values={"image": "example.png"})
_VOICE = Item("voice", "LoadAudio")
"""The user's. example.png comes with ComfyUI; a voice does not, and is left to be chosen."""
_OWN = {"image": "portrait.IMAGE", "mask": "portrait.MASK", "audio": "voice.AUDIO"}
_GIVEN = {"image": "sample.image", "audio": "sample.audio"}
_WALL_PROMPT = "A person with brown hair is talking in front of a blue wall."
_REAL_PROMPT = "A person sits in a bright room, looks at the camera and talks with a friendly smile."
_SMALL = {"prompt": _WALL_PROMPT, "size": "128x128"}


def _save(source: str, prefix: str, key: str = "save", past: str = "") -> Group:
    values = {"filename_prefix": f"video/{prefix}"}
    return (KEEP, (Item(key, "SaveVideo", {"video": f"{source}.video"}, values, past=past),))


def _miniature(**values: Any) -> Item:
    return Item("model", "LiveAvatarLoadModel", values={"model": MINIATURE, **values})


def _avatar(wires: dict[str, str], values: dict[str, Any], key: str = "avatar", past: str = "") -> Item:
    return Item(key, "LiveAvatarGenerate", {"model": "model.model", **wires}, values, past=past)


def _quickstart() -> Graph:
    """One node that does it all, on the miniature."""
    columns: tuple[Column, ...] = (
        (READ_ME,),
        ((SAMPLE, (_SAMPLE,)), (MODEL, (_miniature(),))),
        ((MAKE, (_avatar(_GIVEN, _SMALL),)),),
        (_save("avatar", "quickstart"),),
    )
    app = (("avatar.prompt", "avatar.seed", "avatar.seconds"), ("save",))
    sentence = "No download, no graphics card: press Run"
    return Graph("quickstart", sentence, ("quickstart",), columns, app, widths={"LiveAvatarSample": 330})


def _own_voice() -> Graph:
    """What was just said, or what a text-to-speech node says, in the place of the sample's voice."""
    wires = {"image": "sample.image", "audio": "voice.AUDIO"}
    columns: tuple[Column, ...] = (
        (READ_ME,),
        ((VOICE, (Item("voice", "RecordAudio"),)), (INPUTS, (_SAMPLE, _miniature()))),
        ((MAKE, (_avatar(wires, _SMALL),)),),
        (_save("avatar", "speak_or_tts"),),
    )
    sentence = "Speak into the microphone, or put a text-to-speech node in front"
    return Graph("speak_or_tts", sentence, ("speak_or_tts",), columns, widths={"LiveAvatarSample": 330})


def _several_voices() -> Graph:
    """Two voices, two videos, one loaded model; more rows are copies."""
    voices = [Item(f"voice{n}", "LoadAudio") for n in (1, 2)]
    first, second = ({"image": "sample.image", "audio": f"voice{n}.AUDIO"} for n in (1, 2))
    sources = (replace(_SAMPLE, past="avatar1"), _miniature())
    later = replace(voices[1], under=("model",))
    columns: tuple[Column, ...] = (
        (READ_ME,),
        ((VOICE, (voices[0],)), (INPUTS, sources)),
        ((f"{MAKE} 1", (_avatar(first, _SMALL, "avatar1"),)), (VOICE, (later,))),
        (_save("avatar1", "voice1", "save1"), (f"{MAKE} 2", (_avatar(second, _SMALL, "avatar2", past="avatar1"),))),
        (_save("avatar2", "voice2", "save2", past="avatar1"),),
    )
    sentence = "Two recordings, two videos; the model is loaded once"
    return Graph("several_voices", sentence, ("several_voices",), columns, widths={"LiveAvatarSample": 330})


def _modular() -> Graph:
    """Every part as a node of its own, on the miniature."""
    foreseen = {"model": "model.model", **_GIVEN}
    speech = {"model": "model.model", "audio": _GIVEN["audio"]}
    below = ("sample", "model")
    words = Item("words", "LiveAvatarTextEncode", {"model": "model.model"}, {"prompt": _WALL_PROMPT}, under=below)
    encode = (
        words,
        Item("audio", "LiveAvatarAudioFeatures", speech),
        Item("plan", "LiveAvatarPlan", foreseen, {"size": "128x128"}),
    )
    wires = {"model": "model.model", "positive": "words.positive", "audio": "audio.audio", "image": _GIVEN["image"]}
    sampler = Item("sampler", "LiveAvatarSampler", wires, {"size": "128x128"}, above=50)
    columns: tuple[Column, ...] = (
        ((INPUTS, (_SAMPLE, _miniature())), READ_ME),
        ((ENCODE, encode),),
        ((LATENTS, (sampler,)),),
        ((DECODE, (_decode(),)),),
        (_save("decode", "modular"),),
    )
    sentence = "Change one thing, and only what depends on it runs again"
    return Graph("modular", sentence, ("modular",), columns, widths={"LiveAvatarSample": 330, "LiveAvatarDecode": 320})


def _decode() -> Item:
    return Item("decode", "LiveAvatarDecode", {"latents": "sampler.latents"})


def _real(name: str, sentence: str, **backend: Any) -> Graph:
    """The 14B model on devices of some kind, in one node, with its plan."""
    model = Item("model", "LiveAvatarLoadModel", {"backend": "backend.backend"}, {"model": REAL})
    foreseen = {"model": "model.model", "image": _OWN["image"], "audio": _OWN["audio"]}
    plan = Item("plan", "LiveAvatarPlan", foreseen, {"size": "704x384"}, under=("portrait",))
    columns: tuple[Column, ...] = (
        (READ_ME, (DEVICES, (Item("backend", "LiveAvatarBackend", values=backend),))),
        ((INPUTS, (model, _VOICE, _PORTRAIT)),),
        ((PLAN, (plan,)),),
        ((MAKE, (_avatar(_OWN, {"prompt": _REAL_PROMPT, "size": "704x384"}),)),),
        (_save("avatar", name),),
    )
    return Graph(name, sentence, (name, "real"), columns, width=296, widths={"MarkdownNote": 336})


def _core_encoders() -> Graph:
    """Words and sound by ComfyUI's own nodes, all from single files."""
    files = {"model": SINGLE_FILE, "lora": LORA_FILE["name"], "text_encoder": TEXT_FILE["name"]}
    files |= {"audio_encoder": SOUND_FILE["name"], "vae": VAE_FILE["name"]}
    load = Item(
        "model", "LiveAvatarLoadModel", values=files, models=(NETWORK_FILE, LORA_FILE, TEXT_FILE, SOUND_FILE, VAE_FILE)
    )
    clip = Item("clip", "CLIPLoader", values={"clip_name": TEXT_FILE["name"], "type": "wan"}, models=(TEXT_FILE,))
    ear = Item("ear", "AudioEncoderLoader", values={"audio_encoder_name": SOUND_FILE["name"]}, models=(SOUND_FILE,))
    listen = {"audio_encoder": "ear.AUDIO_ENCODER", "audio": _OWN["audio"]}
    encoded = Item("encoded", "AudioEncoderEncode", listen, above=70)
    speech = {"model": "model.model", "audio": _OWN["audio"], "audio_encoder_output": "encoded.AUDIO_ENCODER_OUTPUT"}
    audio = Item("audio", "LiveAvatarAudioFeatures", speech)
    words = Item("words", "CLIPTextEncode", {"clip": "clip.CLIP"}, {"text": _REAL_PROMPT}, under=("model",))
    wires = {"model": "model.model", "positive": "words.CONDITIONING", "audio": "audio.audio"}
    wires |= {"image": _OWN["image"], "mask": _OWN["mask"]}
    wide = {"AudioEncoderEncode": 286, "LiveAvatarAudioFeatures": 258, "LiveAvatarSampler": 260}
    wide |= {"LiveAvatarDecode": 304, "SaveVideo": 226}
    columns: tuple[Column, ...] = (
        ((VOICE, (ear, replace(_VOICE, past="model"))), READ_ME),
        ((MODEL, (load,)), (ENCODE, (encoded, clip))),
        ((ENCODE, (words, audio)), (INPUTS, (_PORTRAIT,))),
        ((LATENTS, (Item("sampler", "LiveAvatarSampler", wires),)),),
        ((DECODE, (_decode(),)),),
        (_save("decode", "core_encoders"),),
    )
    sentence = "Its text and audio encoders, from the single files you may have"
    return Graph("core_encoders", sentence, ("core_encoders",), columns, width=240, gap=56, widths=wide)


def _live() -> Graph:
    """A microphone in, the talking face in the node, its recording behind."""
    wires = {"model": "model.model", "image": "sample.image"}
    columns: tuple[Column, ...] = (
        (READ_ME,),
        ((SAMPLE, (_SAMPLE,)), (MODEL, (_miniature(vae="tiny"),))),
        ((TALK, (Item("live", "LiveAvatarLive", wires, _SMALL),)),),
        (_save("live", "live"),),
    )
    sentence = "Speak, and the face says it, in the node; Stop gives the recording"
    return Graph("live", sentence, ("live",), columns, widths={"LiveAvatarSample": 330, "LiveAvatarLive": 330})


def _two_speakers() -> Graph:
    """Two people in one picture, with masks of core: a white square on black, at the left and at the right."""
    black = Item("black", "SolidMask", values={"value": 0.0, "width": 512, "height": 256})
    white = Item("white", "SolidMask", values={"width": 256, "height": 256})
    wires = {"destination": "black.MASK", "source": "white.MASK"}
    left, right = (
        Item(side, "MaskComposite", wires, {"x": x, "operation": "add"}) for side, x in (("left", 0), ("right", 256))
    )
    sounds = {"audio.audio_1": "pair.left", "audio.audio_2": "pair.right"}
    masks = {"mask.mask_1": "left.MASK", "mask.mask_2": "right.MASK"}
    given = {"image": "pair.image", "audio": "speakers.speakers"}
    asked = {"prompt": "A person is talking in front of a blue wall.", "size": "256x128"}
    columns: tuple[Column, ...] = (
        (READ_ME,),
        ((MODEL, (_miniature(),)), (MASKS, (black, white))),
        ((SAMPLE, (Item("pair", "LiveAvatarSamplePair", under=("model",)),)), (MASKS, (left, right))),
        ((SPEAK, (Item("speakers", "LiveAvatarSpeakers", sounds | masks, under=("pair",)),)),),
        ((MAKE, (_avatar(given, asked),)),),
        (_save("avatar", "two_speakers"),),
    )
    sentence = "Two people in one picture, each with a sound and a mask"
    wide = {"MarkdownNote": 250, "LiveAvatarSamplePair": 310, "LiveAvatarGenerate": 290, "SaveVideo": 226}
    return Graph("two_speakers", sentence, ("two_speakers",), columns, width=240, gap=56, widths=wide)


GRAPHS = (
    _quickstart(),
    _own_voice(),
    _several_voices(),
    _modular(),
    _real("16gb_card", "The 14B model, slowly: most layers and the KV cache in RAM", memory=FREE, allow_smaller=True),
    _real("24gb_card", "The 14B model: fp8 weights, the KV cache in RAM", memory=FREE),
    _real("32gb_card", "The 14B model, not rounded: a third of it and the KV cache in RAM", memory=FREE),
    _real("80gb_card", "The 14B model, not rounded: only the KV cache in RAM", devices="cuda:0"),
    _real("two_24gb_cards", "The 14B model: half of the layers on each, the KV cache in RAM", engine=WORKERS),
    _real("four_24gb_cards", "The 14B model: a quarter of the layers on each, nothing in RAM", engine=WORKERS),
    _real(
        "five_80gb_cards",
        "The 14B model as its authors run it: a step on each, then the VAE",
        engine=WORKERS,
        devices="cuda:0,cuda:1,cuda:2,cuda:3,cuda:4",
        stages="4x1",
    ),
    _core_encoders(),
    _live(),
    _two_speakers(),
)
"""In the order in which a newcomer meets them."""
