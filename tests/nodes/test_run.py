"""The nodes at work on the miniature: a graph's values handed from node to node, as ComfyUI does."""

import json
import shutil
import sys
import threading
from types import SimpleNamespace

import av
import fake_comfy
import pytest
import torch

MINIATURE = "miniature (comes along)"
SIZE = {"size": "64x64", "steps": 2, "seed": 3}


def run(node: type, **inputs):
    return fake_comfy.run(node, **inputs).args


@pytest.fixture
def image():
    return torch.linspace(0, 1, 64)[None, :, None, None].expand(1, 64, 64, 3).contiguous()


@pytest.fixture
def audio():
    t = torch.arange(16_000) / 16_000
    return {"waveform": (0.3 * torch.sin(900 * t))[None, None], "sample_rate": 16_000}


@pytest.fixture
def latents(nodes, model, image, audio, positive):
    return sample(nodes, model, image, audio, positive)


def sample(nodes, model, image, audio, positive, **widgets):
    return sampled(nodes, model, image, audio, positive, **widgets)[0]


def sampled(nodes, model, image, audio, positive, **widgets):
    (voice,) = run(nodes["LiveAvatarAudioFeatures"], model=model, audio=audio, seconds=0.0)
    return run(
        nodes["LiveAvatarSampler"],
        model=model,
        positive=positive,
        audio=voice,
        image=image,
        fit="cover",
        sink="drawn from the seed",
        sink_distance=30,
        **(SIZE | widgets),
    )


def decode(nodes, latents, vae="automatic"):
    return fake_comfy.run(nodes["LiveAvatarDecode"], latents=latents, vae=vae, filename_prefix="clip")


def frames_in(video) -> int:
    with av.open(video.get_stream_source()) as container:
        return sum(1 for _ in container.decode(video=0))


def prompts_told(out) -> list[str | None]:
    """By the receipt, as asked and as used, and by the MP4."""
    video, receipt = out.args
    with av.open(video.get_stream_source()) as container:
        inside = json.loads(container.metadata["comment"])
    told = json.loads(receipt)
    return [told["requested"]["prompt"], told["effective"]["prompt"], inside["prompt"]]


def test_the_sampler_answers_before_anything_is_loaded(latents, model):
    assert model.loaded_bytes == 0
    assert latents.spec.resolved.frames == 25


def test_the_modular_graph_and_the_single_node_make_the_same_video(nodes, host, latents, model, image, audio):
    out = decode(nodes, latents)
    video, receipt = out.args
    assert frames_in(video) == 25
    shown = out.ui.as_dict()["images"][0]
    assert (host.base / "temp" / shown["subfolder"] / shown["filename"]).is_file()
    single = fake_comfy.run(
        nodes["LiveAvatarGenerate"],
        model=model,
        image=image,
        audio=audio,
        prompt="A person talks.",
        **SIZE,
        seconds=0.0,
        filename_prefix="clip",
    )
    assert single.args[0].get_stream_source() != video.get_stream_source()
    assert json.loads(single.args[1])["frames_sha256"] == json.loads(receipt)["frames_sha256"]


def test_both_graphs_follow_a_pose_alike(nodes, latents, model, image, audio, positive):
    pose = torch.rand(10, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    posed = sample(nodes, model, image, audio, positive, pose=pose)
    assert posed.spec.resolved.pose and any("pose video ends" in note for note in posed.spec.resolved.notes)
    words = {"prompt": "A person talks.", "seconds": 0.0, "filename_prefix": "clip"}
    single = fake_comfy.run(
        nodes["LiveAvatarGenerate"], model=model, image=image, audio=audio, **words, **SIZE, pose=pose
    )
    hashes = [json.loads(out.args[1])["frames_sha256"] for out in (decode(nodes, posed), single)]
    assert hashes[0] == hashes[1]
    looped = sample(nodes, model, image, audio, positive, pose=pose, pose_end="loop")
    assert (
        len({*hashes, *(json.loads(decode(nodes, other).args[1])["frames_sha256"] for other in (looped, latents))}) == 3
    )


ODD_POSES = {
    "none": (torch.zeros(0, 64, 64, 3), "The pose holds no picture"),
    "small": (torch.zeros(2, 1, 1, 3), "pose video has 1x1 pixels"),
    "bytes": (torch.full((2, 64, 64, 3), 255.0), "Of the pose: The image holds float32 values"),
    "number": (3, "The pose is of type int"),
}


@pytest.mark.parametrize("case", ODD_POSES)
def test_a_pose_that_cannot_be_followed_is_refused_as_one(pack, nodes, model, image, audio, positive, case):
    pose, said = ODD_POSES[case]
    with pytest.raises(pack.liveavatar.errors.PoseError, match=said):
        sample(nodes, model, image, audio, positive, pose=pose)


def test_receipt_and_video_tell_the_prompt_that_was_used(nodes, latents, model, image, audio):
    assert prompts_told(decode(nodes, latents)) == ["A person talks."] * 3
    single = {"model": model, "image": image, "audio": audio, "prompt": "A man sings.", **SIZE, "seconds": 0.0}
    out = fake_comfy.run(nodes["LiveAvatarGenerate"], **single, filename_prefix="clip")
    assert prompts_told(out) == ["A man sings."] * 3


def other_conditionings(positive) -> dict[str, list]:
    """What core makes by itself, and what its nodes make of ours: they copy what came with the embedding."""
    embedding, beside = positive[0]
    return {
        "CLIP Text Encode": [[embedding.clone(), {"pooled_output": None}]],
        "Conditioning Zero Out": [[torch.zeros_like(embedding), beside.copy()]],
        "Conditioning (Concat)": [[torch.cat((embedding, embedding), 1), beside.copy()]],
    }


@pytest.mark.parametrize("kind", ["CLIP Text Encode", "Conditioning Zero Out", "Conditioning (Concat)"])
def test_a_prompt_whose_text_is_not_known_is_not_made_up(nodes, model, image, audio, positive, kind):
    out = decode(nodes, sample(nodes, model, image, audio, other_conditionings(positive)[kind]))
    assert prompts_told(out) == [None] * 3
    assert "text is not known" in " ".join(json.loads(out.args[1])["effective"]["notes"])


def test_the_text_stays_with_conditioning_that_core_copies(nodes, model, image, audio, positive):
    (embedding, beside), other = positive[0], positive[0][0] * 2
    combined = [[embedding.clone(), {**beside, "start_percent": 0.0}], [other, {}]]
    assert prompts_told(decode(nodes, sample(nodes, model, image, audio, combined))) == ["A person talks."] * 3


def test_progress_rises_to_the_end_with_a_preview_for_every_block(nodes, host, latents):
    host.ticks.clear()
    host.messages.clear()
    decode(nodes, latents)
    values = [value for value, _, _ in host.ticks]
    assert values == sorted(set(values)) and values[0] < 100
    assert values[-1] == host.ticks[-1][1]
    assert all(preview is None for _, _, preview in host.ticks), "the frontend takes it for the node's video"
    sent = [data for event, data in host.messages if event == "liveavatar.progress"]
    phases = list(dict.fromkeys(data["phase"] for data in sent))
    assert phases[-2:] == ["generating", "done"]
    told = [data for data in sent if data["phase"] == "generating"]
    pictures = [data["preview"] for data in sent if "preview" in data]
    assert len(pictures) >= 1
    assert all(picture["filename"].endswith(".jpg") for picture in pictures)
    assert not list((host.base / "temp").glob("*.jpg")), "it lies there only while the video grows"
    assert (host.base / "temp" / told[-1]["file"]["filename"]).is_file()
    assert {"block", "blocks", "step", "steps", "frames", "seconds_ready", "devices", "node"} <= told[-1].keys()


def test_one_bar_for_all_phases_of_the_one_node_graph(nodes, host, model, image, audio):
    host.ticks.clear()
    host.messages.clear()
    inputs = {"model": model, "image": image, "audio": audio, "prompt": "", **SIZE, "seconds": 0.0}
    fake_comfy.run(nodes["LiveAvatarGenerate"], **inputs, filename_prefix="clip")
    values = [value for value, _, _ in host.ticks]
    assert values == sorted(set(values)) and values[0] < 100 and values[-1] == host.ticks[-1][1]
    shares = [data["share"] for event, data in host.messages if event == "liveavatar.progress"]
    assert shares == sorted(shares) and shares[-1] == 1 and len(set(shares)) > 5


def test_a_second_decode_replays(nodes, host, latents):
    first = json.loads(decode(nodes, latents).args[1])
    host.messages.clear()
    again = json.loads(decode(nodes, latents).args[1])
    assert again["frames_sha256"] == first["frames_sha256"]
    assert all(data["phase"] != "loading the network" for _, data in host.messages)


def test_a_sampler_goes_on_from_what_another_one_leaves_and_from_a_file(nodes, host, model, image, audio, positive):
    first, state = sampled(nodes, model, image, audio, positive, keep_state=True)
    beside = [image, {**audio, "waveform": audio["waveform"][..., :7000]}, positive]
    one = sample(nodes, model, *beside, state=state)
    assert one.spec.resolved.first_block == 3 and not first.complete
    (told,) = run(nodes["LiveAvatarSaveState"], state=state, filename_prefix="state")
    assert first.complete and "1.44 s of video" in told
    name = nodes["LiveAvatarLoadState"].define_schema().inputs[0].given["options"][-1]
    assert told.startswith(str(host.base / "output" / "liveavatar" / name))
    two = sample(nodes, model, *beside, state=run(nodes["LiveAvatarLoadState"], file=name)[0])
    receipts = [json.loads(decode(nodes, job).args[1]) for job in (one, two, first)]
    assert receipts[0]["frames_sha256"] == receipts[1]["frames_sha256"]
    assert [r["probed"]["frames"] for r in receipts] == [11, 11, 36]


def test_where_a_state_cannot_be_written_is_said_before_its_video_is_made(
    pack, nodes, model, image, audio, positive, monkeypatch
):
    _, state = sampled(nodes, model, image, audio, positive, keep_state=True)
    with pytest.raises(pack.liveavatar.errors.OutputError, match="no file can be"):
        run(nodes["LiveAvatarSaveState"], state=state, filename_prefix="nothing\0")
    monkeypatch.setattr(pack.liveavatar.video_state.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(pack.liveavatar.errors.OutputError, match="The state takes"):
        run(nodes["LiveAvatarSaveState"], state=state, filename_prefix="state")
    assert model.loaded_bytes == 0


def test_a_cancelled_video_leaves_its_state_in_the_output_folder(nodes, host, model, image, audio, positive):
    first, _ = sampled(nodes, model, image, audio, positive, keep_state=True)
    folder = host.base / "output" / "liveavatar"
    before, management = set(folder.glob("*")), host.modules["comfy.model_management"]
    original = management.processing_interrupted
    host.messages.clear()

    def interrupted_while_generating() -> bool:
        host.interrupted = host.interrupted or any(data.get("phase") == "generating" for _, data in host.messages)
        return original()

    management.processing_interrupted = interrupted_while_generating
    with pytest.raises(management.InterruptProcessingException):
        decode(nodes, first)
    host.interrupted, management.processing_interrupted = False, original
    (file,) = set(folder.glob("*")) - before
    assert file.name.startswith("cancelled")
    told = host.messages[-1][1]
    assert told["phase"] == "cancelled" and told["state"] == file.name
    (state,) = run(nodes["LiveAvatarLoadState"], file=file.name)
    assert 0 < state.info.block < 3


def test_a_video_is_continued_from_its_last_frames(nodes, pack, model, image, audio, positive, latents, tmp_path):
    video = decode(nodes, latents).args[0]
    (tail,) = run(nodes["LiveAvatarLoadState"], file="none", video=video)
    job = sample(nodes, model, image, audio, positive, state=tail)
    assert any("approximately" in note for note in job.spec.resolved.notes)
    with pytest.raises(pack.liveavatar.errors.StateError, match="no state to save"):
        run(nodes["LiveAvatarSaveState"], state=tail, filename_prefix="state")


def test_what_nothing_can_go_on_from_is_refused_in_widgets(pack, nodes, model, image, audio, positive):
    _, state = sampled(nodes, model, image, audio, positive)
    with pytest.raises(pack.liveavatar.errors.StateError, match="Set keep_state there"):
        sample(nodes, model, image, audio, positive, state=state)
    with pytest.raises(pack.liveavatar.errors.StateError, match="There is no state"):
        run(nodes["LiveAvatarLoadState"], file="../secret.safetensors")
    _, state = sampled(nodes, model, image, audio, positive, keep_state=True)
    wide = image.expand(1, 64, 64, 3).repeat(1, 1, 2, 1)
    with pytest.raises(pack.liveavatar.errors.SizeError, match="Use size 64x64"):
        sample(nodes, model, wide, audio, positive, size="128x64", state=state)


def test_the_end_of_the_process_stops_the_prompt_and_waits_for_it(pack, nodes, host, latents):
    """As Ctrl-C in ComfyUI: its thread would else be broken off in the midst of a computation."""
    began, ends, outcome = threading.Event(), threading.Event(), []

    def prompt() -> None:
        try:
            decode(nodes, latents)
        except host.modules["comfy.model_management"].InterruptProcessingException:
            outcome.append("interrupted")
        host.running.clear()

    host.running.append((0, "prompt", {"1": {"class_type": "LiveAvatarDecode"}}))
    send = host.modules["server"].PromptServer.instance.send_sync

    def told(*message) -> None:
        began.set()
        while not ends.is_set() and not host.interrupted:  # it is not over before it is told to stop
            ends.wait(0.01)
        ends.set()
        send(*message)

    host.modules["server"].PromptServer.instance.send_sync = told
    worker = threading.Thread(target=prompt)
    worker.start()
    assert began.wait(60)
    pack.nodes.host.end_runs()
    assert not host.running and outcome == ["interrupted"] and ("wiped", "") in host.texts
    worker.join()
    with pytest.raises(host.modules["comfy.model_management"].InterruptProcessingException):
        decode(nodes, latents)  # another prompt that was still taken from the queue


def test_the_end_of_the_process_leaves_prompts_of_others_alone(pack, host):
    host.running.append((0, "prompt", {"1": {"class_type": "KSampler"}}))
    pack.nodes.host.end_runs()
    assert not host.interrupted and not host.texts


def test_a_temporary_folder_that_was_removed_is_told_as_that(nodes, host, pack, latents):
    send = host.modules["server"].PromptServer.instance.send_sync

    def remove_later(event, data, sid=None) -> None:
        send(event, data, sid)
        if data["phase"] == "generating":
            shutil.rmtree(host.base / "temp", ignore_errors=True)

    host.modules["server"].PromptServer.instance.send_sync = remove_later
    with pytest.raises(pack.liveavatar.errors.OutputError, match=r"temporary folder .* was removed.* start it again"):
        decode(nodes, latents)


def test_cancel_leaves_as_comfyui_expects_and_the_next_run_is_whole(nodes, host, latents):
    expected = json.loads(decode(nodes, latents).args[1])["frames_sha256"]
    take = type(latents)(latents.pipeline, latents.spec, latents.audio, latents.context)
    count = 0
    original = host.modules["comfy.model_management"].processing_interrupted

    def interrupted_after_some() -> bool:
        nonlocal count
        count += 1
        host.interrupted = host.interrupted or count == 7
        return original()

    host.modules["comfy.model_management"].processing_interrupted = interrupted_after_some
    with pytest.raises(host.modules["comfy.model_management"].InterruptProcessingException):
        decode(nodes, take)
    assert host.messages[-1][1]["phase"] == "cancelled"
    assert take.session().latents.produced == 0
    assert json.loads(decode(nodes, take).args[1])["frames_sha256"] == expected


def test_core_is_asked_for_room_and_may_evict(nodes, host, latents, model):
    decode(nodes, latents)
    assert host.loaded
    patcher = host.loaded[-1]
    assert patcher.model_size() > 1e6
    patcher.detach(False)
    assert model.loaded_bytes > 0
    patcher.detach(True)
    assert model.loaded_bytes == 0
    assert frames_in(decode(nodes, latents).args[0]) == 25


def test_core_is_asked_for_room_on_every_card_and_all_are_given_back_at_once(nodes, pack, host, model):
    released, gb = [], 10**9
    plan = SimpleNamespace(
        total_by_device={"cuda:0": 20 * gb, "cuda:1": 14 * gb, "studio2/cuda:0": 9 * gb},
        weights_by_device={"cuda:0": 15 * gb, "cuda:1": 12 * gb, "studio2/cuda:0": 9 * gb},
    )
    host.modules["comfy.model_management"].get_torch_device = lambda: torch.device("cuda:0")
    model.release = lambda: released.append(True)
    host.loaded.clear()
    model.make_room(plan)
    assert [(str(p.load_device), p.model_size()) for p in host.loaded] == [("cuda:0", 15 * gb), ("cuda:1", 12 * gb)]
    for patcher in host.loaded:
        patcher.load(patcher.load_device)
    host.loaded[1].detach(True)
    assert released == [True] and [p.model.model_loaded_weight_memory for p in host.loaded] == [0, 0]


def test_another_vae_file_is_looked_up_by_name(nodes, pack, host, latents):
    with pytest.raises(pack.liveavatar.errors.MissingFilesError, match=r"other\.safetensors"):
        decode(nodes, latents, vae="other.safetensors")
    assert host.messages[-1][1]["phase"] == "failed"


def test_latents_for_core(nodes, latents):
    (latent,) = run(nodes["LiveAvatarLatent"], latents=latents)
    assert latent["samples"].shape == (1, 16, 3 * latents.spec.resolved.blocks, 8, 8)


def test_the_plan_says_what_the_video_becomes(nodes, latents, model, image, audio):
    asked = {"size": "64x64", "steps": 2, "seconds": 0.0}
    out = fake_comfy.run(nodes["LiveAvatarPlan"], model=model, image=image, audio=audio, **asked)
    report, bars = out.args
    assert "64x64, 25 frames" in report
    assert "not known before" in report
    assert bars.ndim == 4
    assert bars.shape[-1] == 3
    (plan,) = out.ui["liveavatar_plan"]
    (device,) = plan["devices"]
    assert sum(part["bytes"] for part in device["parts"]) == device["total"]
    decode(nodes, latents)
    assert "about" in run(nodes["LiveAvatarPlan"], model=model, image=image, audio=audio, **asked)[0]


def test_the_plan_of_what_cannot_be_is_a_refusal(nodes, model):
    out = fake_comfy.run(nodes["LiveAvatarPlan"], model=model, size="1000000x1000000", steps=4, seconds=0.0)
    assert out.args[0].startswith("This cannot be made.")
    assert out.ui["liveavatar_plan"][0]["refused"]


def test_a_size_that_is_none_is_said_before_the_run(nodes):
    for node in ("LiveAvatarSampler", "LiveAvatarGenerate", "LiveAvatarPlan"):
        assert nodes[node].validate_inputs(size="704x384") is True
        assert nodes[node].validate_inputs(size=None) is True
        assert "banana" in nodes[node].validate_inputs(size="banana")


@pytest.mark.parametrize(
    ("said", "meant"),
    [("off", False), ("auto", "auto"), ("on", True), (False, False), (True, True)],
    ids=["off", "auto", "on", "the switch of older graphs, off", "the switch of older graphs, on"],
)
def test_compiling_is_asked_for_in_words_and_as_older_graphs_do(nodes, monkeypatch, said, meant):
    monkeypatch.setattr("live_avatar_pack.liveavatar.compiler.missing_requirements", lambda kind: [])
    node = nodes["LiveAvatarBackend"]
    assert node.validate_inputs(compile=said) is True and node.validate_inputs() is True
    where = {"engine": "this process", "devices": "cpu", "stages": "1x1", "memory": "keep loaded", "threads": 1}
    assert run(node, **where, compile=said)[0].placement.compile == meant


def test_another_word_for_compiling_is_refused_before_the_run(nodes):
    for word in ("yes", "", 1, "True", {}):
        assert "Use auto, off, on." in nodes["LiveAvatarBackend"].validate_inputs(compile=word)


def test_the_sample_speaks(nodes):
    image, audio = run(nodes["LiveAvatarSample"])
    assert image.shape[-1] == 3
    assert image.ndim == 4
    assert audio["waveform"].shape[-1] / audio["sample_rate"] > 1


def test_a_workflow_names_no_cluster_of_its_own(nodes):
    where = {"devices": "cpu", "stages": "1x2", "memory": "keep loaded", "threads": 1, "address": "10.0.0.1:6379"}
    with pytest.raises(Exception, match=r"10\.0\.0\.1:6379.* only say local or auto.*LIVEAVATAR_ADDRESS"):
        run(nodes["LiveAvatarBackend"], engine="worker processes", **where)


def test_an_error_is_shown_by_its_name_and_not_by_the_path_of_the_pack(nodes, model):
    with pytest.raises(Exception) as refusal:
        run(nodes["LiveAvatarAudioFeatures"], model=model, audio=None, seconds=0.0)
    kind = refusal.type
    assert f"{kind.__module__}.{kind.__qualname__}" == "liveavatar.errors.AudioError"


def test_without_ray_the_command_for_this_python_is_shown(nodes, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Exception) as refusal:
        run(
            nodes["LiveAvatarBackend"], engine="worker processes", devices="cpu", stages="1x1", memory="free", threads=1
        )
    said = str(refusal.value)
    assert sys.executable in said and '-m pip install "ray' in said and "engine this process" in said
    assert "--" not in said


def test_worker_processes_make_the_same_video(nodes, latents, image, audio):
    """The pack is imported under a name that no other process knows, as in ComfyUI."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
    expected = json.loads(decode(nodes, latents).args[1])["frames_sha256"]
    where = {"devices": "cpu", "stages": "1x2", "memory": "free after each run", "threads": 1}
    (backend,) = run(nodes["LiveAvatarBackend"], engine="worker processes", **where)
    automatic = dict.fromkeys(("lora", "text_encoder", "audio_encoder", "vae", "precision"), "automatic")
    (model,) = run(nodes["LiveAvatarLoadModel"], model=MINIATURE, **automatic, backend=backend)
    video = {"prompt": "A person talks.", "seconds": 0.0, "filename_prefix": "clip", **SIZE}
    out = run(nodes["LiveAvatarGenerate"], model=model, image=image, audio=audio, **video)
    assert json.loads(out[1])["frames_sha256"] == expected
    assert backend.worker_pids == ()


BIG = {"size": "704x384", "steps": 4, "seconds": 10.0}


def test_plans_for_cards_that_are_not_here(nodes, model):
    out = fake_comfy.run(nodes["LiveAvatarPlan"], model=model, cards="2x24", **BIG)
    (data,) = out.ui["liveavatar_plan"]
    assert data["refused"] is None and data["devices"][0]["name"] == "cuda:0"
    assert data["devices"][0]["capacity"] == 24 * 2**30 > data["devices"][0]["total"]
    assert "cuda:0" in out.args[0]


@pytest.mark.parametrize("cards", ["24 GB", "0x24", "99x24", "two"])
def test_cards_that_are_not_understood_are_a_report(nodes, model, cards):
    out = fake_comfy.run(nodes["LiveAvatarPlan"], model=model, cards=cards, **BIG)
    assert "cannot be made" in out.args[0] and out.ui["liveavatar_plan"][0]["refused"]


TIMELINE = "0.5: A man laughs.\n# a comment\n0:00.96: A sad man: alone"


def test_a_timeline_makes_the_same_video_in_both_graphs_and_is_told(nodes, model, image, audio):
    (positive,) = run(nodes["LiveAvatarTextEncode"], model=model, prompt="A person talks.", timeline=TIMELINE)
    modular = decode(nodes, sample(nodes, model, image, audio, positive))
    given = {"model": model, "image": image, "audio": audio, "prompt": "A person talks.", **SIZE, "seconds": 0.0}
    single = fake_comfy.run(nodes["LiveAvatarGenerate"], **given, filename_prefix="clip", timeline=TIMELINE)
    plain = fake_comfy.run(nodes["LiveAvatarGenerate"], **given, filename_prefix="clip")
    told = [json.loads(out.args[1]) for out in (modular, single, plain)]
    hashes = [receipt["frames_sha256"] for receipt in told]
    assert hashes[0] == hashes[1] != hashes[2]
    for receipt in told[:2]:
        assert receipt["effective"]["prompt"] == "A person talks."
        assert receipt["effective"]["prompt_changes"] == [[1, "A man laughs."], [2, "A sad man: alone"]]


def test_a_timeline_is_refused_where_only_its_first_prompt_was_changed(nodes, model, image, audio):
    (positive,) = run(nodes["LiveAvatarTextEncode"], model=model, prompt="A person talks.", timeline=TIMELINE)
    (embedding, beside), *_ = positive
    with pytest.raises(Exception, match="prompts of its timeline were not"):
        sample(nodes, model, image, audio, [[embedding * 0.5, beside]])


@pytest.mark.parametrize("name", ["LiveAvatarGenerate", "LiveAvatarTextEncode"])
def test_a_timeline_that_cannot_be_read_is_refused_before_anything_runs(nodes, name):
    validate = nodes[name].validate_inputs
    assert validate(timeline=TIMELINE) is True
    assert validate() is True
    assert "Line 2 of the timeline" in validate(timeline="0: calm\nlaughing")
    assert "only a timeline of the command line" in validate(timeline="1: image: /etc/passwd")
