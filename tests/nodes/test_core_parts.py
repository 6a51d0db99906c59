"""Core's VAE and CLIP in place of the model's parts, further LoRAs, and lists of voices."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import fake_comfy
import fakes
import pytest
import torch
from safetensors.torch import load_file, save_file
from weights.core_files import write_core_files

from liveavatar.config import MINI, UNTRAINED
from liveavatar.weights.lora import lora_targets

SMALL = dataclasses.replace(UNTRAINED, num_layers=1, audio_inject_layers=(0,), audio_layers=2, audio_dim=64)
MINIATURE, NAME = "miniature (comes along)", "s2v.safetensors"
AUTOMATIC = dict.fromkeys(("lora", "text_encoder", "audio_encoder", "vae", "precision"), "automatic")
SIZE = {"size": "64x64", "steps": 2, "seed": 3}
VOICE = {"waveform": (0.3 * torch.sin(torch.arange(9_600) * 0.05))[None, None], "sample_rate": 16_000}
PICTURE = torch.linspace(0, 1, 64)[None, :, None, None].expand(1, 64, 64, 3).contiguous()


def run(node, **inputs):
    return fake_comfy.run(node, **inputs).args


def load(nodes, **chosen):
    where = {"engine": "this process", "devices": "cpu", "stages": "auto", "memory": "keep loaded", "threads": 1}
    (backend,) = run(nodes["LiveAvatarBackend"], **where)
    return run(nodes["LiveAvatarLoadModel"], **({"model": MINIATURE, "backend": backend} | AUTOMATIC | chosen))[0]


def generate(nodes, model, **changed):
    given = {"model": model, "image": PICTURE, "audio": VOICE, "prompt": "A person talks.", "seconds": 0.0, **SIZE}
    return json.loads(run(nodes["LiveAvatarGenerate"], **(given | changed), filename_prefix="clip")[1])


# -- a VAE --


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fakes.write_official_folder(tmp_path_factory.mktemp("models") / "Wan2.2-S2V-14B", SMALL)


@pytest.fixture
def files(host, original):
    """Single files in the host's folders, found by their names; the VAE is not among them."""
    written = write_core_files(host.base / "models", original)
    shutil.copy(original / "config.json", written.transformer.parent)
    for path, name in ((written.text_encoder, "umt5_xxl.safetensors"), (written.lora, "liveavatar.safetensors")):
        path.rename(path.with_name(name))
    vae = load_file(written.vae)
    written.vae.unlink()
    return vae


class CoreVAE:
    """The part of core's object that is read."""

    def __init__(self, tensors):
        self.tensors = tensors

    def get_sd(self):
        return self.tensors


def test_a_connected_vae_takes_the_place_of_its_file(files, nodes, host):
    node = nodes["LiveAvatarLoadModel"]
    widgets = {"model": NAME, **{part: "automatic" for part in AUTOMATIC if part != "precision"}}
    assert "VAE" in node.validate_inputs(**widgets)
    assert node.validate_inputs(**widgets, core_vae=None) is True, "a linked input is None before the run"
    model = load(nodes, model=NAME, core_vae=CoreVAE(files))
    assert all(torch.equal(load_file(model.components.files.vae)[key], tensor) for key, tensor in files.items())
    load(nodes, model=NAME, core_vae=CoreVAE({key: tensor.clone() for key, tensor in files.items()}))
    assert len(list((host.base / "temp").iterdir())) == 1, "the same weights are written once"
    half = CoreVAE({key: tensor.half() for key, tensor in files.items()})
    assert load(nodes, model=NAME, core_vae=half).components.files.vae != model.components.files.vae


@pytest.mark.parametrize(
    ("vae", "words"),
    [
        (CoreVAE({"decoder.upsamples.0.upsamples.0.residual.2.weight": torch.ones(2)}), "is a VAE of Wan 2.2, not a"),
        (CoreVAE({"decoder.conv_in.weight": torch.ones(2), "quant_conv.weight": torch.ones(2)}), "is not a VAE of Wan"),
        (CoreVAE({}), "is no VAE of Wan 2.1"),
        (torch.nn.Linear(2, 2), "The connected VAE is Linear"),
    ],
)
def test_another_vae_is_refused_with_the_right_file(nodes, pack, host, vae, words):
    with pytest.raises(pack.liveavatar.errors.ModelError, match=words) as refused:
        load(nodes, core_vae=vae)
    assert "wan_2.1_vae.safetensors" in str(refused.value)
    assert not list((host.base / "temp").iterdir())


def test_the_miniature_keeps_its_own_vae(files, nodes, pack):
    with pytest.raises(pack.liveavatar.errors.ModelError, match="comes with all of its parts; another vae"):
        load(nodes, core_vae=CoreVAE(files))


# -- a CLIP --


class CoreCLIP:
    """Core's CLIP as its nodes call it: 512 rows at least, zeros behind the words."""

    def __init__(self, tokens=("umt5xxl",), rows=512):
        self.tokens, self.rows, self.read = tokens, rows, []

    def tokenize(self, text):
        return {name: [[(text, 1.0)]] for name in self.tokens}

    def encode_from_tokens(self, tokens):
        self.read.append(tokens["umt5xxl"][0][0][0])
        rows = torch.zeros(1, self.rows, MINI.text_dim)
        rows[0, : min(self.rows, 5)] = 0.1
        return rows


def test_a_connected_clip_reads_the_prompt_and_its_text_goes_along(nodes):
    model, clip = load(nodes), CoreCLIP(rows=600)
    ((embedding, beside),) = run(nodes["LiveAvatarTextEncode"], model=model, prompt=" A  man\ntalks. ", clip=clip)[0]
    assert embedding.shape == (1, MINI.text_len, MINI.text_dim) and clip.read == ["A man talks."]
    assert beside["liveavatar_prompt"][0] == " A  man\ntalks. "
    told = generate(nodes, model, clip=clip, prompt="A man sings.")
    assert told["effective"]["prompt"] == "A man sings."
    assert generate(nodes, model, clip=clip, prompt="A man sings.", seed=4)["frames_sha256"] != told["frames_sha256"]
    assert clip.read == ["A man talks.", "A man sings."], "another seed reads nothing again"
    assert told["frames_sha256"] != generate(nodes, model, prompt="A man sings.")["frames_sha256"]


@pytest.mark.parametrize(
    ("clip", "words"),
    [(CoreCLIP(("t5xxl", "l")), "another type: it reads t5xxl, l"), (3, "The connected CLIP is int")],
)
def test_another_clip_is_refused_with_the_right_one(nodes, pack, clip, words):
    model = load(nodes)
    for node, more in (
        ("LiveAvatarTextEncode", {}),
        ("LiveAvatarGenerate", {"image": PICTURE, "audio": VOICE, "seconds": 0.0, "filename_prefix": "x", **SIZE}),
    ):
        with pytest.raises(pack.liveavatar.errors.RequestError, match=words) as refused:
            run(nodes[node], model=model, prompt="A man talks.", clip=clip, **more)
        assert "umt5_xxl_fp16" in str(refused.value) and "type wan" in str(refused.value)


# -- LoRAs --


@pytest.fixture
def styles(host):
    """Two LoRAs for the miniature; one names what it has not."""
    targets, chance = lora_targets(MINI), torch.Generator().manual_seed(2)
    for name, extra in (("style", {}), ("face", {"lora_unet_blocks_0_cross_attn_k_img": (4, 4)})):
        shapes = {f"lora_unet_{t.replace('.', '_')}": shape_of(t) for t in targets[:3]} | extra
        tensors = {}
        for module, (rows, columns) in shapes.items():
            tensors[f"{module}.lora_down.weight"] = torch.randn(2, columns, generator=chance)
            tensors[f"{module}.lora_up.weight"] = torch.randn(rows, 2, generator=chance)
            tensors[f"{module}.alpha"] = torch.tensor(1.0)
        save_file(tensors, host.base / "models" / "loras" / f"{name}.safetensors")


def shape_of(target):
    assert "attn" in target
    return MINI.dim, MINI.dim


def test_loras_chain_into_the_model_and_the_receipt_and_the_plan_tell_them(styles, nodes):
    node = nodes["LiveAvatarLoRA"]
    (first,) = run(node, lora="style.safetensors", strength=0.5)
    (both,) = run(node, lora="face.safetensors", strength=-1.0, loras=first)
    assert [(extra.path.stem, extra.strength) for extra in both] == [("style", 0.5), ("face", -1.0)]
    assert run(node, lora="none", strength=1.0, loras=first) == (first,)
    assert run(node, lora="none", strength=1.0) == ((),)
    model = load(nodes, loras=both)
    told = generate(nodes, model)
    published, style, face = told["loras"]
    assert published["changed"] == len(lora_targets(MINI)) and (style["changed"], style["not_found"]) == (3, [])
    assert face["not_found"] == ["lora_unet_blocks_0_cross_attn_k_img"]
    report = run(nodes["LiveAvatarPlan"], model=model, size="64x64", steps=2, seconds=1.0)[0]
    for note in ("style.safetensors at strength 0.5 changes 3 tensors", "not in this network: 1"):
        assert note in report and any(note in told_note for told_note in told["plan"]["notes"])
    plain = generate(nodes, load(nodes))
    assert told["frames_sha256"] != plain["frames_sha256"] and len(plain["loras"]) == 1


def test_a_lora_that_is_missing_is_said_before_the_run_and_a_replaced_one_is_read_anew(styles, nodes, host):
    node = nodes["LiveAvatarLoRA"]
    assert "There is no file 'gone.safetensors' in models/loras" in node.validate_inputs(lora="gone.safetensors")
    assert all(node.validate_inputs(lora=lora) is True for lora in ("none", "style.safetensors", None))
    seen = node.fingerprint_inputs(lora="style.safetensors", strength=1.0, loras=None)
    path = host.base / "models" / "loras" / "style.safetensors"
    os.utime(path, ns=(1, 1))
    assert node.fingerprint_inputs(lora="style.safetensors", strength=1.0, loras=None) != seen
    assert node.fingerprint_inputs(lora="none", strength=1.0) == "none"


def test_a_lora_for_another_network_is_refused_when_the_model_is_chosen(nodes, host, pack):
    path = host.base / "models" / "loras" / "sdxl.safetensors"
    save_file({"lora_unet_down_blocks_0.lora_down.weight": torch.ones(2, 4)}, path)
    (loras,) = run(nodes["LiveAvatarLoRA"], lora="sdxl.safetensors", strength=1.0)
    with pytest.raises(pack.liveavatar.errors.LoRAError, match="changes nothing of this network"):
        load(nodes, loras=loras)


# -- lists --


def with_index(module, index):
    return SimpleNamespace(**vars(module.get_executing_context()), list_index=index)


def test_a_batch_becomes_a_list_and_a_list_makes_its_videos_with_one_load(nodes, host, pack, monkeypatch):
    """Core runs each node once for every element of a list, with the same model."""
    batch = {**VOICE, "waveform": torch.cat([VOICE["waveform"] ** power for power in (1, 2, 3)])}
    model = load(nodes)
    with pytest.raises(pack.liveavatar.errors.AudioError, match=r"holds 3 sounds.*Audio Batch to List"):
        generate(nodes, model, audio=batch)
    (voices,) = run(nodes["LiveAvatarAudioList"], audio=batch)
    host.messages.clear()
    context, told = host.modules["comfy_execution.utils"], []
    for index, voice in enumerate(voices):
        monkeypatch.setattr(pack.nodes.host, "get_executing_context", lambda at=index: with_index(context, at))
        told.append(generate(nodes, model, audio=voice))
    assert len({receipt["frames_sha256"] for receipt in told}) == 3
    assert ["load network" in receipt["seconds"] for receipt in told] == [True, False, False]
    phases = [data["phase"] for _, data in host.messages]
    assert [data.get("item") for _, data in host.messages if data["phase"] == "done"] == [None, 2, 3]
    assert phases.count("done") == 3 and sum("network" in phase for phase in set(phases)) == 1
