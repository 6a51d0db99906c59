"""Train the miniature: `python -m liveavatar.mini.train [--stage ...] --work DIR [--out DIR]`.

Stages, in order: vae, sound, words (each alone), scenes (encodes training videos with them), network, export, tiny_vae
(a small decoder of the exported VAE's latents), pair_scenes and pair (videos of two people, and the LoRA that the
exported network needs for them). Every stage saves once a minute and goes on where it was; what is finished is passed
over.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..components import MINI_FOLDER, SPEAKERS_LORA, Components, open_components
from ..components import load_vae as open_vae
from ..errors import LiveAvatarError, MissingFilesError
from ..vae.wan import optimize_layout
from .training.export import write_network
from .training.loop import load_checkpoint
from .training.network import EARLY, REFINED, refine_network, train_network
from .training.pair import make_pair_scenes, train_pair, write_pair
from .training.recipe import Recipe
from .training.scenes import make_scenes
from .training.sound import export_sound, train_sound, trained_movement_encoder
from .training.tiny_vae import load_tiny, train_tiny, write_tiny
from .training.vae import train_decoder, train_vae
from .training.vae_result import load_vae, write_vae
from .training.words import export_words, train_words, trained_reader

Log = Callable[[str], None]
STAGES = ("vae", "sound", "words", "scenes", "network", "export", "tiny_vae", "pair_scenes", "pair")


def main() -> int:
    """Run the asked stages."""
    parser = argparse.ArgumentParser(prog="python -m liveavatar.mini.train", description=__doc__)
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES)
    parser.add_argument("--work", type=Path, default=Path("output/mini-training"), help="checkpoints and scenes")
    parser.add_argument("--out", type=Path, default=Path("output/mini"), help="the model folder that export writes")
    parser.add_argument("--minutes", type=float, help="end each stage after so many minutes; run again to go on")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--share", default="0/1", metavar="K/N", help="of the scenes, make every Nth from K on")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        for stage in (s for s in STAGES if s in arguments.stage):
            run(stage, Recipe(), arguments, _say)
    except LiveAvatarError as error:
        print(f"liveavatar: {error}", file=sys.stderr)
        return 2
    return 0


def run(stage: str, recipe: Recipe, arguments: argparse.Namespace, log: Log) -> None:
    """Run one stage to its end, or for the minutes it is given."""
    work, minutes = arguments.work, arguments.minutes
    work.mkdir(parents=True, exist_ok=True)
    log(f"stage {stage}")
    if stage == "vae":
        if train_vae(recipe, work, minutes, log):
            train_decoder(recipe, work, minutes, log)
    elif stage == "sound":
        train_sound(recipe, work, minutes, log)
    elif stage == "words":
        train_words(recipe, work, minutes, log)
    elif stage == "scenes":
        make_scenes(recipe, work, encoders(recipe, work), *_shared(arguments), log)
    elif stage == "network":
        if train_network(recipe, work, minutes, log):
            refine_network(recipe, work, minutes, log)
    elif stage == "export":
        export(recipe, work, arguments.out, log)
    elif stage == "tiny_vae":
        tiny_vae(recipe, work, arguments.out, minutes, log)
    elif stage == "pair_scenes":
        make_pair_scenes(recipe, work, _encoders_of(exported(arguments.out)), *_shared(arguments), log)
    else:
        pair(recipe, work, arguments.out, minutes, log)


def _shared(arguments: argparse.Namespace) -> tuple[int, int]:
    """The first of the scenes that are made here, and the step to the next."""
    first, stride = (int(n) for n in arguments.share.split("/"))
    return first, stride


def encoders(recipe: Recipe, work: Path) -> tuple[Any, Any, tuple[Any, Any]]:
    """The trained VAE, sound encoder, and text encoder with its tokenizer."""
    reader, tokenizer = trained_reader(recipe, work)
    vae = optimize_layout(load_vae(recipe, work).build())
    return vae, trained_movement_encoder(recipe, work).encoder, (reader.encoder, tokenizer)


def export(recipe: Recipe, work: Path, folder: Path, log: Log) -> None:
    """Write the model folder in the official layout.

    Raises:
        MissingFilesError: a stage before has not been run.
    """
    trained, early = load_checkpoint(work / REFINED), load_checkpoint(work / EARLY)
    if trained is None or early is None:
        raise MissingFilesError(f"There is no trained network in {work}.", "Run the stage 'network' first.")
    sizes = {
        "network": write_network(recipe, folder, trained, early),
        "VAE": write_vae(folder / "vae", load_vae(recipe, work)),
        "sound": export_sound(recipe, work, folder),
        "words": export_words(recipe, work, folder),
    }
    log(", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items()))
    log(f"{sum(sizes.values()) / 1e6:.2f} MB in {folder}")


def tiny_vae(recipe: Recipe, work: Path, folder: Path, minutes: float | None, log: Log) -> None:
    """Train the tiny decoder of the exported VAE, or of the miniature's own, and write it beside the rest."""
    own = folder / "vae"
    vae = open_vae(own if own.is_dir() else MINI_FOLDER / "vae", "cpu", torch.float32)
    if train_tiny(recipe, work, vae, minutes, log):
        log(f"tiny decoder {write_tiny(folder, load_tiny(recipe, work)) / 1e6:.2f} MB in {folder}")


def exported(folder: Path) -> Components:
    """The exported model, or the miniature that comes along."""
    return open_components(folder if (folder / "config.json").is_file() else "mini")


def _encoders_of(components: Components) -> tuple[Any, Any, tuple[Any, Any]]:
    """A model's VAE, sound encoder, and text encoder with its tokenizer."""
    reader = components.text_encoder("cpu", torch.float32)
    return components.vae("cpu", torch.float32), components.audio_encoder("cpu", torch.float32), reader


def pair(recipe: Recipe, work: Path, folder: Path, minutes: float | None, log: Log) -> None:
    """Train the LoRA of two people for the exported network, and write beside the rest what it has learned so far."""
    components = exported(folder)
    train_pair(recipe, work, components, minutes, log)
    folder.mkdir(parents=True, exist_ok=True)
    size = write_pair(recipe, work, components, folder / SPEAKERS_LORA)
    log(f"LoRA of two people {size / 1e6:.2f} MB in {folder}")


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
