"""Several speakers in a graph: sockets of both kinds of cores, wiring, masks, and what each node makes of them."""

import json
import re

import fake_comfy
import frozen
import pytest
import torch
from test_run import SIZE, decode, run, sample


def sound(frequency: float, seconds: float = 1.0) -> dict:
    t = torch.arange(round(16_000 * seconds)) / 16_000
    return {"waveform": (0.3 * torch.sin(frequency * t))[None, None], "sample_rate": 16_000}


def half(left: bool, height: int = 64, width: int = 128) -> torch.Tensor:
    """MASK of one half of a picture."""
    mask = torch.zeros(1, height, width)
    mask[:, :, : width // 2] = 1
    return mask if left else mask.flip(2)


PAIR = {
    "audio.audio_1": sound(900),
    "mask.mask_1": half(True),
    "audio.audio_2": sound(700, 0.6),
    "mask.mask_2": half(False),
}


@pytest.fixture
def image():
    return torch.linspace(0, 1, 128)[None, None, :, None].expand(1, 64, 128, 3).contiguous()


@pytest.fixture
def speakers(nodes):
    return run(nodes["LiveAvatarSpeakers"], **PAIR)[0]


@pytest.fixture
def errors(pack):
    return pack.liveavatar.errors


class Autogrow:
    """Sockets that grow, as a core that knows them takes them."""

    def __init__(self, io):
        self.io = io
        self.Input = lambda id, *, template, optional=False, tooltip=None: fake_comfy.Slot(
            "COMFY_AUTOGROW_V3", frozenset({"optional", "template"}), id, {"optional": optional, "template": template}
        )

    @staticmethod
    def TemplateNames(input, names, min):
        group = "optional" if input.optional else "required"
        return {"input": {group: {input.id: [input.io_type, input.options_given()]}}, "names": names, "min": min}


def test_a_core_that_knows_growing_sockets_opens_the_same_files(pack, nodes, monkeypatch):
    node = nodes["LiveAvatarSpeakers"]
    old = node.define_schema()
    schema_io = pack.nodes.schema.io
    monkeypatch.setattr(schema_io, "Autogrow", Autogrow(schema_io), raising=False)
    new = node.define_schema()
    assert [slot.id for slot in new.inputs] == ["audio", "mask"]
    grown = {slot.id: [slot.io_type, slot.options_given()] for slot in new.inputs}
    info = {"input": {"optional": grown}, "output_name": ["speakers"], "output": ["LIVEAVATAR_SPEAKERS"]}
    assert frozen.of_object_info(info) == frozen.of_schema(old)
    names = grown["audio"][1]["template"]["names"]
    assert names == [f"audio_{n}" for n in range(1, pack.liveavatar.speakers.MAX_SPEAKERS + 1)]


def test_both_kinds_of_cores_give_the_same_speakers(nodes, speakers):
    grouped = {group: {} for group in ("audio", "mask")}
    for name, value in PAIR.items():
        group, _, socket = name.partition(".")
        grouped[group][socket] = value
    (other,) = nodes["LiveAvatarSpeakers"].execute(**grouped).args
    for one in (speakers, other):
        assert [clip.source for clip in one.each] == ["audio_1", "audio_2"]
        assert [mask.source for mask in one.masks] == ["mask_1", "mask_2"]
        assert one.audio.seconds == 1.0
    assert (other.audio.samples[:] == speakers.audio.samples[:]).all()


def test_one_speaker_alone_is_one_voice(nodes, pack):
    (voice,) = run(nodes["LiveAvatarSpeakers"], **{"audio.audio_1": sound(900)})
    assert isinstance(voice, pack.liveavatar.media.audio.AudioClip)


def test_one_pair_alone_leaves_the_rest_of_the_picture_silent(nodes):
    (one,) = run(nodes["LiveAvatarSpeakers"], **without("audio.audio_2", "mask.mask_2"))
    assert [mask.source for mask in one.masks] == ["mask_1", "the rest of the picture"]
    assert "one speaker, at mask_1: the rest of the picture hears silence" in one.notes()


def without(*names: str, **others) -> dict:
    return {name: value for name, value in PAIR.items() if name not in names} | others


WIRED = {
    "nothing": ({}, "No speaker is connected"),
    "no mask": (without("mask.mask_2"), "audio_2 is connected, but mask_2 is not.*Mask Editor"),
    "no masks": (without("mask.mask_1", "mask.mask_2"), "audio_1 is connected, but mask_1 is not"),
    "no sound": (without("audio.audio_2"), "mask_2 is connected, but audio_2 is not.*Empty Audio"),
    "strange": (without(**{"audio.face": sound(1)}), "no input audio.face"),
}


@pytest.mark.parametrize("case", WIRED)
def test_what_is_not_connected_is_said_before_anything_runs(nodes, errors, case):
    given, said = WIRED[case]
    node = nodes["LiveAvatarSpeakers"]
    assert re.search(said, node.validate_inputs(**dict.fromkeys(given)))
    with pytest.raises(errors.SpeakerError, match=said):
        node.execute(**given)


def test_what_is_connected_well_passes(nodes):
    assert nodes["LiveAvatarSpeakers"].validate_inputs(**dict.fromkeys(PAIR)) is True


VALUES = {
    "empty": ({"mask.mask_2": torch.zeros(1, 64, 64)}, "The mask_2 is empty.*Invert Mask"),
    "no mask": ({"mask.mask_1": torch.rand(1, 4, 4, 3)}, "The mask_1 is"),
    "a number": ({"mask.mask_2": 3}, "The mask_2 is int"),
    "not finite": ({"mask.mask_1": torch.full((4, 4), float("nan"))}, "The mask_1 holds values that are not numbers"),
    "no sound": ({"audio.audio_2": None}, "audio_2: No sound came"),
    "two sounds": ({"audio.audio_1": sound(9) | {"waveform": torch.zeros(2, 1, 800)}}, "audio_1: .*2 sound"),
}


@pytest.mark.parametrize("case", VALUES)
def test_what_cannot_be_used_is_refused_with_its_socket(nodes, errors, case):
    given, said = VALUES[case]
    with pytest.raises(errors.RequestError, match=said):
        run(nodes["LiveAvatarSpeakers"], **PAIR | given)


def test_of_a_batch_of_masks_the_first_is_taken_and_told(nodes, speakers):
    batch = torch.cat([half(False), half(True)])
    (taken,) = run(nodes["LiveAvatarSpeakers"], **PAIR | {"mask.mask_2": batch})
    assert (taken.masks[1].values == speakers.masks[1].values).all()
    assert "speaker 2 (audio_2): the first of 2 masks is used" in taken.notes()
    (flat,) = run(nodes["LiveAvatarSpeakers"], **PAIR | {"mask.mask_2": half(False)[0]})
    assert (flat.masks[1].values == speakers.masks[1].values).all()


def test_both_graphs_make_the_same_video_of_two_with_both_sounds(nodes, model, image, speakers, positive):
    job = sample(nodes, model, image, speakers, positive)
    assert model.loaded_bytes == 0 and job.spec.resolved.speaker_count == 2
    receipts = [json.loads(decode(nodes, job).args[1])]
    words = {"prompt": "A person talks.", "seconds": 0.0, "filename_prefix": "clip"}
    single = fake_comfy.run(nodes["LiveAvatarGenerate"], model=model, image=image, audio=speakers, **words, **SIZE)
    receipts.append(json.loads(single.args[1]))
    assert receipts[0]["frames_sha256"] == receipts[1]["frames_sha256"]
    for told in receipts:
        names = [(one["audio"], one["mask"]) for one in told["speakers"]]
        assert names == [("audio_1", "mask_1"), ("audio_2", "mask_2")]
    (voice,) = run(nodes["LiveAvatarAudioFeatures"], model=model, audio=PAIR["audio.audio_1"], seconds=0.0)
    assert voice.speakers is None
    alone = json.loads(decode(nodes, sample(nodes, model, image, PAIR["audio.audio_1"], positive)).args[1])
    assert alone["frames_sha256"] != receipts[0]["frames_sha256"]


def test_seconds_limit_every_speaker(nodes, model, speakers):
    (voice,) = run(nodes["LiveAvatarAudioFeatures"], model=model, audio=speakers, seconds=0.5)
    assert voice.audio.seconds == 0.5 and [clip.seconds for clip in voice.speakers.each] == [0.5, 0.5]
    assert voice.features.blocks == 2


def test_one_encoding_is_not_taken_for_several_speakers(nodes, model, speakers, errors):
    with pytest.raises(errors.SpeakerError, match="audio_encoder_output"):
        run(
            nodes["LiveAvatarAudioFeatures"],
            model=model,
            audio=speakers,
            seconds=0.0,
            audio_encoder_output={"encoded_audio_all_layers": [torch.zeros(1, 50, 8)]},
        )


def test_masks_are_held_against_the_picture_before_anything_loads(nodes, model, image, positive, errors):
    wide = run(nodes["LiveAvatarSpeakers"], **PAIR | {"mask.mask_1": torch.ones(1, 64, 64)})[0]
    words = {"prompt": "A person talks.", "seconds": 0.0, "filename_prefix": "clip"}
    overlapping = run(nodes["LiveAvatarSpeakers"], **PAIR | {"mask.mask_2": half(True)})[0]
    cases = ((overlapping, r"speaker 1 \(audio_1\) and .*overlap"), (wide, "64x64, and the picture 128x64"))
    for spoken, said in cases:
        with pytest.raises(errors.SpeakerError, match=said):
            sample(nodes, model, image, spoken, positive)
        model.release()
        with pytest.raises(errors.SpeakerError, match=said):
            run(nodes["LiveAvatarGenerate"], model=model, image=image, audio=spoken, **words, **SIZE)
        assert model.loaded_bytes == 0
        text = planned(nodes, model, spoken, image=image)
        assert "cannot be made" in text and re.search(said, text)


def planned(nodes, model, spoken, **given) -> str:
    asked = {"size": "128x64", "steps": 2, "seconds": 0.0}
    return run(nodes["LiveAvatarPlan"], model=model, audio=spoken, **asked, **given)[0]


def test_the_plan_counts_speakers_and_says_where_they_are(nodes, model, speakers, image):
    text = planned(nodes, model, speakers, image=image)
    assert ", 2 speakers" in text
    assert "speaker 2: audio_2, 0.60 s, at mask_2 (50% of the picture)" in text
    assert "speaker 2 (audio_2) says nothing from 0.60 s on" in text
    assert ", 2 speakers" in planned(nodes, model, speakers) and ", 2 speakers" not in planned(nodes, model, sound(900))


def test_a_new_seed_encodes_none_of_eight_speakers_again(nodes, model, pack, monkeypatch):
    most = pack.liveavatar.speakers.MAX_SPEAKERS
    given = {}
    for n in range(most):
        mask = torch.zeros(1, 16, 16 * most)
        mask[:, :, 16 * n : 16 * n + 16] = 1
        given |= {f"audio.audio_{n + 1}": sound(300 + 50 * n, 0.3), f"mask.mask_{n + 1}": mask}
    (spoken,) = nodes["LiveAvatarSpeakers"].execute(**given).args
    run(nodes["LiveAvatarAudioFeatures"], model=model, audio=spoken, seconds=0.0)
    codec = type(model.encoders().encoders)
    monkeypatch.setattr(codec, "encode_audio", lambda *_: pytest.fail("encoded again"))
    run(nodes["LiveAvatarAudioFeatures"], model=model, audio=spoken, seconds=0.0)


def test_the_sample_of_two_is_there(nodes):
    image, left, right = run(nodes["LiveAvatarSamplePair"])
    assert image.shape == (1, 256, 512, 3)
    lengths = [one["waveform"].shape[-1] / one["sample_rate"] for one in (left, right)]
    assert lengths[1] > lengths[0] > 1, "the right one waits"
