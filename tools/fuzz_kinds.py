"""Kinds of inputs for `tools.fuzz`, and the worker process that tries them: `python -m tools.fuzz_kinds`.

A kind makes an input from a random generator and uses it as the product would. It returns where that works, and raises
`LiveAvatarError` where the input is refused; everything else is a fault.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from liveavatar.errors import LiveAvatarError

from .fuzz_corpus import (
    AUDIO,
    IMAGES,
    TENSORS,
    audio_file,
    gguf_file,
    image_files,
    pickled_files,
    state_file,
    tensor_file,
    video_file,
)
from .fuzz_mutations import mutated_bytes, mutated_json
from .fuzz_requests import call_pipeline, plan_placement, plan_with_options

_LIMIT = 3 << 30
"""Bytes of addresses that an input may take; the library promises to stay far below with what it really uses."""


def _audio(ending: str) -> Callable[[random.Random, Path], None]:
    def attempt(rng: random.Random, folder: Path) -> None:
        from liveavatar.media.audio import audio_notes
        from liveavatar.media.audio_file import read_audio

        others = [audio_file(ending), audio_file(rng.choice(AUDIO))]
        path = _written(folder / f"voice.{ending}", mutated_bytes(rng, others[0], others))
        clip = read_audio(path, rng.choice((None, 0.1)))
        audio_notes(clip)
        assert clip.samples.ndim == 2 and clip.rate > 0

    return attempt


def _image(ending: str) -> Callable[[random.Random, Path], None]:
    def attempt(rng: random.Random, folder: Path) -> None:
        from liveavatar.media.image import check_image, read_image

        own, others = image_files(ending), image_files(rng.choice(IMAGES))
        path = _written(folder / f"face.{ending}", mutated_bytes(rng, rng.choice(own), own + others))
        check_image(read_image(path, []))

    return attempt


def _pose(rng: random.Random, folder: Path) -> None:
    from liveavatar.media.pose_video import PoseFile, endless_pictures

    path = _written(folder / "pose.mp4", mutated_bytes(rng, video_file(), [video_file()]))
    pictures = endless_pictures(PoseFile(path), rng.choice(("hold", "loop", "black")), 64, 64, "cover")
    assert all(next(pictures).shape == (64, 64, 3) for _ in range(40))
    pictures.close()


def _video(rng: random.Random, folder: Path) -> None:
    path = _written(folder / "video.mp4", mutated_bytes(rng, video_file(), [video_file()]))
    _command_line("repair", str(path))


def _safetensors(rng: random.Random, folder: Path) -> None:
    from liveavatar.weights.source import SafetensorsSource

    content = tensor_file()
    content = _with_header(rng, content) if rng.random() < 0.6 else mutated_bytes(rng, content, [content])
    source = SafetensorsSource(_written(folder / "a.safetensors", content))
    keys = source.keys()
    for key in keys:
        source.read(key)
    list(source.zeros(keys))


def _tail(rng: random.Random, folder: Path) -> None:
    from liveavatar.media.last_frames import read_last_frames

    path = _written(folder / "before.mp4", mutated_bytes(rng, video_file(), [video_file()]))
    assert read_last_frames(path, 73).frames.ndim == 4


def _state(rng: random.Random, folder: Path) -> None:
    from liveavatar.config import UNTRAINED
    from liveavatar.request import Request
    from liveavatar.video_state import VideoState

    content = state_file()
    content = _with_header(rng, content) if rng.random() < 0.6 else mutated_bytes(rng, content, [content])
    state = VideoState(_written(folder / "a.state", content))
    state.check(UNTRAINED, "network", "untrained")
    state.info.request_for(Request(size="64x64"))
    for name in state.keys():  # noqa: SIM118
        state.read(name)


def _pickled(rng: random.Random, folder: Path) -> None:
    from liveavatar.weights.source import TorchSource

    files = pickled_files()
    source = TorchSource(_written(folder / "a.pt", mutated_bytes(rng, rng.choice(files), files)))
    keys = source.keys()
    for key in keys:
        source.read(key)


def _gguf(rng: random.Random, folder: Path) -> None:
    from liveavatar.weights.gguf import GGUFSource

    content = gguf_file()
    source = GGUFSource(_written(folder / "a.gguf", mutated_bytes(rng, content, [content])))
    keys = source.keys()
    for key in keys:
        source.read(key)
    list(source.zeros(keys))
    for name in ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "a.flag"):
        source.value(name)


def _with_header(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header is JSON of its right length, with other content."""
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(rng, json.loads(content[8 : 8 + length]))
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


@functools.cache
def _model_copy() -> tuple[Path, dict[str, bytes]]:
    """A copy of the miniature, and the content of its files that are changed."""
    from liveavatar.components import MINI_FOLDER

    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    shutil.copytree(MINI_FOLDER, folder, dirs_exist_ok=True, copy_function=os.symlink)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.json")] + list(TENSORS)
    return folder, {name: (folder / name).read_bytes() for name in sorted(names)}


def _model(is_chosen: Callable[[str], bool], change: Callable[[random.Random, bytes], bytes]) -> Callable[..., None]:
    """A model of which one file is changed."""

    def attempt(rng: random.Random, _: Path) -> None:
        folder, files = _model_copy()
        name = rng.choice([name for name in files if is_chosen(name)])
        try:
            (folder / name).unlink()
            _written(folder / name, change(rng, files[name]))
            _open_model(folder, name)
        finally:
            _written(folder / name, files[name])

    return attempt


def _open_model(folder: Path, changed: str) -> None:
    import torch

    from liveavatar.components import open_components
    from liveavatar.encoders.text import prompt_notes
    from liveavatar.weights.folder import format_inspection, inspect_model

    format_inspection(inspect_model(folder), None)
    model, cpu = open_components(folder), torch.device("cpu")
    match changed.split("/")[0]:
        case "vae":
            model.vae(cpu, torch.float32)
        case "text_encoder" | "tokenizer":
            model.text_encoder(cpu, torch.float32)
            prompt_notes(model.tokenizer, "A person talks. " * 200, 512)
        case "wav2vec2-large-xlsr-53-english":
            model.audio_encoder(cpu, torch.float32)
        case _:
            _whole_transformer(model)


def _whole_transformer(model: Any) -> None:
    import torch

    from liveavatar.model.transformer import ModelSlice

    model.transformer(ModelSlice.whole(model.config), torch.device("cpu"), torch.float32)


def _cli(rng: random.Random, folder: Path) -> None:
    _command_line("plan", *plan_with_options(rng, folder))


def _command_line(*arguments: str) -> None:
    """A command that refuses raises its refusal, as the library does."""
    from liveavatar.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    if code == 2 and err.getvalue().startswith("liveavatar: "):
        raise LiveAvatarError(err.getvalue()[:300])
    assert code == 0 and out.getvalue(), f"exit code {code}: {err.getvalue()[-300:]}"


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


KINDS: Mapping[str, Callable[[random.Random, Path], None]] = {
    **{ending: _audio(ending) for ending in AUDIO},
    **{ending: _image(ending) for ending in IMAGES},
    "mp4": _video,
    "tail": _tail,
    "state": _state,
    "pose": _pose,
    "safetensors": _safetensors,
    "pickle": _pickled,
    "gguf": _gguf,
    "model-json": _model(lambda name: name.endswith(".json"), lambda rng, data: mutated_json(rng, json.loads(data))),
    "model-weights": _model(lambda name: name in TENSORS, _with_header),
    "cli": _cli,
    "call": call_pipeline,
    "placement": plan_placement,
}
"""Name -> what makes and tries an input of it."""


def outcome(kind: str, seed: int, index: int, folder: Path) -> tuple[str, str]:
    """What became of an input, as in `tools.fuzz.Outcome`, and why."""
    try:
        KINDS[kind](random.Random(f"{seed}/{kind}/{index}"), folder)
    except LiveAvatarError as refusal:
        too_long = len(str(refusal)) > 4000
        return ("crashed", f"a refusal of {len(str(refusal))} letters") if too_long else ("refused", "")
    except SystemExit as left:  # --help
        return ("refused", "") if not left.code else ("crashed", f"exit {left.code}")
    except BaseException as error:
        places = [f"{Path(at.filename).name}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)[-4:]]
        return "crashed", f"{type(error).__name__}: {error} at {', '.join(places)}"[:600]
    return "read", ""


def serve() -> None:
    """Answer lines "KIND SEED INDEX" until there are no more."""
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)  # decoders written in C print, too
    with tempfile.TemporaryDirectory(prefix="liveavatar-fuzz-") as name, contextlib.chdir(name):
        os.environ["XDG_CACHE_HOME"] = name
        _import_everything()
        _limit_memory()
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            kind, seed, index = line.split()
            before = _peak(reset=True)
            found = outcome(kind, int(seed), int(index), Path(name))
            print(json.dumps([*found, max(0, _peak() - before)]), file=answers, flush=True)


def _import_everything() -> None:
    """What is loaded once is no memory of an input."""
    from liveavatar.components import MINI_FOLDER

    _open_model(MINI_FOLDER, "vae")
    _open_model(MINI_FOLDER, "text_encoder")
    _open_model(MINI_FOLDER, "wav2vec2-large-xlsr-53-english")


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # where the system has no such limit
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _LIMIT, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _peak(reset: bool = False) -> int:
    """Bytes of the most resident memory since the last reset; 0 where Linux does not tell."""
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    serve()
