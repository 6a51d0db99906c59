"""Makes a video with workers, from a library that has a name no other process can import, until it is killed.

Run as: killed_driver.py PROJECT. Says on standard output "started" and then nothing more.
"""

import importlib
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

NAME = "/packs/live_avatar"


def library(project: Path) -> Any:
    """Import the pack as ComfyUI does: under its path."""
    spec = importlib.util.spec_from_file_location(
        NAME, project / "__init__.py", submodule_search_locations=[str(project)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return lambda part: importlib.import_module(f"{NAME}.liveavatar.{part}")


def main() -> None:
    project = Path(sys.argv[1])
    get = library(project)
    import torch

    components = get("components").open_components("untrained")
    config, session = components.config, get("session")
    effective = get("request").resolve(get("request").Request(size="64x64", seed=5), (640, 640), 16_000 * 480, 16_000)
    audio = get("encoders.audio").AudioFeatures(config.audio_layers, config.audio_dim)
    audio.append(torch.zeros(effective.blocks * 12, config.audio_layers, config.audio_dim).numpy())
    zeros = torch.zeros
    conditioning = session.Conditioning(zeros(16, 1, 8, 8), zeros(16, 19, 8, 8), zeros(4, config.text_dim), audio)
    task = session.VideoTask(effective, conditioning, get("request").SinkDistance())
    kept = get("storage").StorageConfig(offload_layers=2)
    backend = get("distributed").RayBackend(get("placement").Placement(("cpu",), stages="2x1", threads=1, storage=kept))
    plan = backend.placement.make_plan(effective, config, components.name)
    running = backend.engine(components, plan).run(task)
    assert next(running).shape == (16, 3, 8, 8)
    assert "liveavatar" not in sys.modules
    print("started", flush=True)
    for _ in running:
        time.sleep(0.05)


if __name__ == "__main__":
    main()
