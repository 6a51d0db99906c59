"""Cut a small case out of a full folder of golden numbers, to be committed with the tests.

    python tools/cut_golden.py SOURCE DEST

copies, for every family named in KEEP, the JSON and the tensors whose names match, unchanged (float32 stays exact).
In the JSON the `tensors` map shrinks to what is kept and long records of the original's single-GPU variants go; every
number a test reads stays. Block and layer numbers in the patterns are filled in from the case's own JSON.
"""

from __future__ import annotations

import fnmatch
import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

LIMIT = 6_100_000
"""Bytes the cut folder may take, all files together."""

KEEP: dict[str, list[str]] = {
    "schedule": [
        "timesteps.*", "sigmas.*", "step.sample", "step.model_output",
        "step.0.prev_sample", "step.0.prev_sample_bf16", "step.{last_step}.prev_sample",
    ],
    "dit_weights": ["*"],
    "dit": [
        "timesteps", "sigmas", "in.audio", "in.audio_b", "in.cond_states", "in.context", "in.mask", "in.noise",
        "in.motion_latents", "in.ref_latents",
        "A.prefill.cond_?.{first_layer}", "A.prefill.cond_?.{last_layer}", "A.x0.0", "A.x0.{wrap}", "A.x0.{last}",
        "A.noise_pred.0.*", "A.noise_pred.{wrap}.0", "A.noise_pred.{wrap}.{last_step}",
        "A.noise_pred.{last}.{last_step}",
        "A.end.?.s0.l0.every17", "A.end.?.s{last_step}.l{last_layer}.every17",
        "B1.prefill.cond_?.{last_layer}", "B1.noise_pred.{second}.0", "B1.x0.{second}",
        "C.noise_pred.0.0", "C.x0.0",
        "D.noise_pred.{far}.{last_step}",
    ],
    "dit_probes": [
        "prefill.framepack.tokens", "b0s0.time.e0", "b0s0.text_embedding", "b0s0.audio_encoder.*", "b0s0.block0.out",
        "b0s0.inject0.*", "C.b0s0.audio_encoder.*", "C.b0s0.head.out",
        "rope.exact_table_frame_rows.*", "rope.motion.*",
        "rope.noise.{near_frame}.*", "rope.noise.{far_frame}.*",
        "rope.cond.{near_frame}.*.*", "rope.cond.{far_cond}.*.*",
    ],
    "vae_weights": ["*"],
    "vae": [
        "mean", "std", "image", "clip_latents", "tpp.ref_latents", "tpp.motion_latents",
        "tpp.stream.rgb.stride3",
    ],
    # The real voice and the encoder's weights stay out (another's recording; 0.5 MB): its features start e2e.
    "audio": [
        "synth.hidden.0", "synth.hidden.12", "synth.hidden.24", "synth.interp30.*", "synth.bucket.*", "real.bucket",
    ],
    "t5_weights": ["*"],
    "t5": ["*"],
    "fp8": [
        "0.*.weight", "0.*.bias", "0.*.input", "0.*.output", "0.*.weight_fp8_bytes", "0.*.input_fp8_bytes", "0.*_scale",
    ],
    "image": ["syn0.*", "syn2.*"],
    "e2e": [
        "image_uint8_hwc", "context", "rel", "timesteps", "tpp.ref_latents", "tpp.second_ref", "tpp.x0.clip1",
        "tpp.rgb.frame*",
    ],
}  # fmt: skip
"""Per family, what is kept: shell patterns of tensor names, with numbers of the case in braces."""

KEYS_14B = ["dit", "dit_config", "params", "fp8", "vae", "umt5", "map_vae_to_diffusers", "map_umt5_to_transformers"]
"""Entries kept of keys_14b.json, the names and shapes of the real checkpoints."""

DROPPED_FACTS = ["single*", "online*", "tpp_vs_single*", "attribution*", "inference_call0", "*_vs_tpp_maxabs*"]
"""JSON entries about the original's single-GPU variants, which no test compares with."""


def numbers(source: Path) -> dict[str, int]:
    """The block, step, layer and frame numbers that the patterns of KEEP name, read from the case."""
    info = json.loads((source / "dit.json").read_text(encoding="utf-8"))
    config = info["config"]
    frames = info["rope_noise_start_frames"]
    return {
        "first_layer": 0,
        "last_layer": config["model"]["num_layers"] - 1,
        "last_step": config["steps"] - 1,
        "wrap": config["cache_blocks"],
        "last": config["num_blocks"] - 1,
        "second": config["second_block"],
        "far": max(config["late_blocks"]),
        "near_frame": min(f for f in frames if f > 0),
        "far_frame": max(frames),
        "far_cond": max(row["start_frame"] for row in info["rope_cond"]),
    }


def cut_family(source: Path, dest: Path, family: str, patterns: list[str]) -> None:
    """Write the kept tensors of one family and its JSON."""
    with safe_open(source / f"{family}.safetensors", "pt") as f:
        kept = {k: f.get_tensor(k) for k in sorted(f.keys()) if any(fnmatch.fnmatchcase(k, p) for p in patterns)}
    unmatched = [p for p in patterns if not fnmatch.filter(kept, p)]
    if unmatched:
        raise SystemExit(f"{family}: no tensor matches {unmatched}")
    info = json.loads((source / f"{family}.json").read_text(encoding="utf-8"))
    info = {k: v for k, v in info.items() if not any(fnmatch.fnmatchcase(k, p) for p in DROPPED_FACTS)}
    info["tensors"] = {k: v for k, v in info["tensors"].items() if k in kept}
    save_file(kept, dest / f"{family}.safetensors")
    write_json(dest / f"{family}.json", info)


def write_json(path: Path, info: dict) -> None:
    """Compact JSON, one line."""
    path.write_text(json.dumps(info, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    source, dest = map(Path, sys.argv[1:])
    dest.mkdir(parents=True, exist_ok=True)
    named = numbers(source)
    for family, patterns in KEEP.items():
        cut_family(source, dest, family, [p.format(**named) for p in patterns])
    keys = json.loads((source / "keys_14b.json").read_text(encoding="utf-8"))
    write_json(dest / "keys_14b.json", {k: keys[k] for k in KEYS_14B})
    total = sum(f.stat().st_size for f in dest.iterdir())
    print(f"{total:,} bytes in {dest}")
    if total > LIMIT:
        raise SystemExit(f"more than {LIMIT:,} bytes: keep less")


if __name__ == "__main__":
    main()
