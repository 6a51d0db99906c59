"""Models and parts by name, in ComfyUI's folders."""

import dataclasses
import shutil
from pathlib import Path

import fake_comfy
import fakes
import pytest
from weights.core_files import write_core_files

from liveavatar.config import UNTRAINED

SMALL = dataclasses.replace(UNTRAINED, num_layers=1, audio_inject_layers=(0,), audio_layers=2, audio_dim=64)
PARTS = ("lora", "text_encoder", "audio_encoder", "vae")
NAME = "s2v.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return fakes.write_official_folder(tmp_path_factory.mktemp("models") / "Wan2.2-S2V-14B", SMALL)


@pytest.fixture
def files(host, original):
    """Single files in the host's folders, and the configuration of a small network."""
    written = write_core_files(host.base / "models", original)
    shutil.copy(original / "config.json", written.transformer.parent)
    return written


def load(nodes, **chosen):
    given = dict.fromkeys((*PARTS, "precision"), "automatic") | {"model": NAME} | chosen
    return fake_comfy.run(nodes["LiveAvatarLoadModel"], **given).args[0].model


def options(nodes, name):
    return next(i for i in nodes["LiveAvatarLoadModel"].define_schema().inputs if i.id == name).given["options"]


def test_only_the_lora_may_be_none(files, nodes):
    assert options(nodes, "lora")[:2] == ["automatic", "none"]
    assert all("none" not in options(nodes, part) for part in PARTS[1:])


def test_parts_are_found_by_their_names_and_can_be_chosen(files, nodes, pack):
    files.text_encoder.rename(files.text_encoder.with_name("umt5_xxl.safetensors"))
    with pytest.raises(Exception, match=r"LoRA .no liveavatar"):
        pack.nodes.paths.open_model(NAME, *["automatic"] * 4)
    opened = pack.nodes.paths.open_model(NAME, files.lora.name, *["automatic"] * 3)
    assert opened.files.lora == files.lora and opened.files.vae == files.vae


def test_a_network_may_need_no_lora(files, nodes, pack):
    files.text_encoder.rename(files.text_encoder.with_name("umt5_xxl.safetensors"))
    opened = pack.nodes.paths.open_model(NAME, "none", *["automatic"] * 3)
    assert opened.files.lora is None and "no Live Avatar LoRA is merged" in opened.notes[0]


def test_what_is_missing_goes_to_its_own_folder(files, nodes, pack, host):
    files.vae.unlink()
    with pytest.raises(Exception, match="not complete") as refusal:
        pack.nodes.paths.open_model(NAME, files.lora.name, files.text_encoder.name, "automatic", "automatic")
    assert f"--local-dir {host.base}/models/vae" in str(refusal.value)


def fault(nodes, **chosen):
    return nodes["LiveAvatarLoadModel"].validate_inputs(**dict.fromkeys(PARTS, "automatic") | chosen)


def test_what_a_template_names_and_is_not_here_is_told_on_run_with_what_fetches_it(nodes, host):
    said = fault(nodes, model="liveavatar/Wan2.2-S2V-14B")
    folder = host.base / "models" / "liveavatar" / "Wan2.2-S2V-14B"
    assert f"{folder} does not exist" in said and said.endswith("Then press R to refresh.")
    assert f"hf download Wan-AI/Wan2.2-S2V-14B --local-dir {folder}" in said
    assert f"hf download Quark-Vision/Live-Avatar liveavatar.safetensors --local-dir {host.base}/models/loras" in said


def test_a_single_file_that_is_not_here_is_fetched_into_its_own_folders(nodes, host):
    said = fault(nodes, model="wan2.2_s2v_14B_bf16.safetensors")
    for category in ("diffusion_models", "loras", "vae", "text_encoders", "audio_encoders"):
        assert f"--local-dir {host.base}/models/{category}" in said


def test_a_folder_of_which_only_a_part_was_downloaded_is_told_as_that(nodes, host, original):
    place = host.base / "models" / "liveavatar" / "half"
    shutil.copytree(original, place)
    shutil.rmtree(place / "google")
    (place / "Wan2.1_VAE.pth").unlink()
    said = fault(nodes, model="liveavatar/half")
    assert f"{place} is not complete" in said and "hf download" in said and said.endswith("refresh.")


def test_what_is_here_and_what_comes_over_a_link_passes(files, nodes):
    assert fault(nodes, model="miniature (comes along)") is True
    assert fault(nodes, model=None) is True
    files.text_encoder.rename(files.text_encoder.with_name("umt5_xxl.safetensors"))
    assert fault(nodes, model=NAME, lora=files.lora.name) is True
    assert "models/loras" in fault(nodes, model=NAME, lora="gone.safetensors")


@pytest.mark.parametrize("name", ["liveavatar/../../secret", "liveavatar/~/x", "/etc/passwd", "", "liveavatar/"])
def test_no_name_leads_out_of_the_folders(nodes, name):
    assert fault(nodes, model=name).startswith(f"There is no model {name!r}.")


@pytest.fixture
def gguf_files(files, host):
    """The transformer and the text encoder as GGUF files, as deep as people put them."""
    from weights.gguf_files import mini_text_encoder, mini_transformer, write_gguf

    models = host.base / "models"
    (models / "text_encoders" / "umt5").mkdir()
    folder = files.transformer.parent
    write_gguf(folder / "Wan2.2-S2V-14B-Q8_0.gguf", mini_transformer(), "Q8_0")
    text = models / "text_encoders" / "umt5" / "umt5-xxl-encoder-Q8_0.gguf"
    write_gguf(text, mini_text_encoder(), "Q8_0", "t5encoder")
    return folder / "Wan2.2-S2V-14B-Q8_0.gguf", text


def test_gguf_files_are_offered_though_the_host_does_not_list_them(gguf_files, nodes):
    assert "Wan2.2-S2V-14B-Q8_0.gguf" in options(nodes, "model")
    assert str(Path("umt5", "umt5-xxl-encoder-Q8_0.gguf")) in options(nodes, "text_encoder")
    assert not any(name.endswith(".gguf") for part in ("lora", "vae", "audio_encoder") for name in options(nodes, part))


def test_a_model_in_gguf_files_is_opened_by_their_names(gguf_files, files, nodes, pack):
    from liveavatar.components import MINI_FOLDER

    shutil.copy(MINI_FOLDER / "config.json", files.transformer.parent)
    name, text = "Wan2.2-S2V-14B-Q8_0.gguf", str(Path("umt5", "umt5-xxl-encoder-Q8_0.gguf"))
    with pytest.raises(Exception, match=r"not complete: tokenizer .*, and umt5-xxl-encoder-Q8_0.gguf carries none"):
        pack.nodes.paths.open_model(name, "none", text, *["automatic"] * 2, vae_path=MINI_FOLDER / "vae")
