"""The published network shares our weights and gives our numbers; what is no checkout of it is refused.

Where the environment variable LIVEAVATAR_ORIGINAL names a checkout, the real one is run; everything else is tested on
stand-ins of a few lines.
"""

import os
import random
import statistics
import sys
from pathlib import Path

import pytest
import torch
from engine.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job, tiny_plan

from liveavatar.bench.original import OriginalNetwork, original_bytes
from liveavatar.bench.original_source import import_original
from liveavatar.bench.step_comparison import MEASURED_BLOCK, StepEngine, compare_steps, fill_window, relative_difference
from liveavatar.config import WAN2_2_S2V_14B
from liveavatar.errors import ModelError
from liveavatar.model.transformer import ModelSlice
from liveavatar.noise_schedule import block_noise
from liveavatar.request import SinkDistance
from liveavatar.session import VideoTask

CONFIG = tiny_config()
CPU = torch.device("cpu")


@pytest.fixture
def checkout() -> Path:
    """A clone of the published repository."""
    named = os.environ.get("LIVEAVATAR_ORIGINAL")
    if not named:
        pytest.skip("LIVEAVATAR_ORIGINAL names no checkout of the published implementation")
    return Path(named)


@pytest.fixture
def ours() -> StepEngine:
    engine = StepEngine(TinyComponents(CONFIG), tiny_plan(CONFIG, tiny_effective(6, 1)))
    engine.load()
    return engine


def job_of(distance: SinkDistance | None = None, size: str = "64x64") -> VideoTask:
    return tiny_job(CONFIG, tiny_effective(6, 1, size), distance)


def noise(job: VideoTask, block: int) -> torch.Tensor:
    return block_noise(job.resolved.seed, block, 16, *job.resolved.latent_size)


def state_of_the_process() -> dict[str, object]:
    """What an import may disturb; modules by identity."""
    import torch._dynamo

    ours = {name: id(m) for name, m in sys.modules.items() if name.partition(".")[0] == "liveavatar"}
    limit = torch._dynamo.config.cache_size_limit
    return {"modules": ours, "path": list(sys.path), "finders": list(sys.meta_path), "limit": limit}


def written(folder: Path, network: str, **modules: str) -> Path:
    """A stand-in for a checkout: the source of its network, and of the modules that it is imported with."""
    sources = {
        "models/wan/causal_model_s2v.py": network,
        "models/wan/inference_utils.py": modules.get("switches", "COMPILE = True"),
        "models/wan/wan_2_2/modules/model.py": "flash_attention = None",
        "models/__init__.py": "raise ImportError('the packages are passed over')",
    }
    for name, source in sources.items():
        path = folder / "liveavatar" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


IMPORTS = """
import torch
from liveavatar.models.wan.wan_2_2.modules import model
from .inference_utils import COMPILE
"""


# -- with a checkout --


@pytest.mark.parametrize("size", ["64x64", "192x128"])
@pytest.mark.parametrize("distance", [SinkDistance(), SinkDistance("fixed", 4), SinkDistance("fixed", 30)], ids=str)
def test_velocities_are_those_of_the_original(checkout, ours, distance, size):
    job, original = job_of(distance, size), OriginalNetwork(checkout, ours.nets())
    assert relative_difference(fill_window(ours, job), fill_window(original, job)) < 1e-5, "block 0"
    for block in (MEASURED_BLOCK, MEASURED_BLOCK + 1):
        velocities = [network.denoise(block, noise(job, block)) for network in (ours, original)]
        assert relative_difference(*velocities) < 1e-5, f"block {block}, which overwrites the oldest in its window"


def test_blocks_before_the_window_is_full(checkout, ours):
    job, original = job_of(), OriginalNetwork(checkout, ours.nets())
    for network in (ours, original):
        network.begin(job)
    for block in range(MEASURED_BLOCK):
        velocities = [network.denoise(block, noise(job, block)) for network in (ours, original)]
        assert relative_difference(*velocities) < 1e-5, f"block {block}"


def test_weights_are_shared_and_another_job_begins_anew(checkout, ours):
    original, job = OriginalNetwork(checkout, ours.nets()), job_of()
    held = {key: t.data_ptr() for net in ours.nets() for key, t in net.state_dict().items()}
    assert {key: t.data_ptr() for key, t in original.network.state_dict().items()} == held
    first = fill_window(original, job)
    assert torch.equal(fill_window(original, job), first), "nothing is left of the job before"


def test_the_process_is_left_as_it_was(checkout, ours):
    before, files, state = state_of_the_process(), set(checkout.rglob("*")), random.getstate()
    fill_window(OriginalNetwork(checkout, ours.nets()), job_of())
    assert state_of_the_process() == before
    assert set(checkout.rglob("*")) == files, "no bytecode is written"
    assert random.getstate() == state
    assert not [name for name in sys.modules if name.startswith("liveavatar.models")]


def test_steps_are_compared(checkout, ours):
    original, job = OriginalNetwork(checkout, ours.nets()), job_of()
    for network in (ours, original):
        fill_window(network, job)
    found = compare_steps(ours, original, job, rounds=3, seconds=0.0)
    assert 0 < found.difference < 1e-5
    assert found.ratio == statistics.median(found.ratios) > 0
    assert len(found.ratios) == 3 and found.seconds > 0 and found.other_seconds > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_as_its_scripts_do_it_goes_on_with_what_it_has(checkout, ours):
    original, job = OriginalNetwork(checkout, ours.nets()), job_of()
    for network in (ours, original):
        fill_window(network, job)
    before = state_of_the_process()
    original.compile()
    velocities = [network.denoise(MEASURED_BLOCK, noise(job, MEASURED_BLOCK)) for network in (ours, original)]
    assert relative_difference(*velocities) < 1e-5
    after = state_of_the_process()  # paths are added by torch's own compiler
    assert (after["modules"], after["limit"]) == (before["modules"], before["limit"])


# -- without one --


def test_an_engine_is_compared_with_its_like(ours):
    other, job = StepEngine(TinyComponents(CONFIG), ours.plan), job_of()
    first, again = (fill_window(network, job) for network in (ours, other))
    assert torch.equal(first, again)
    assert compare_steps(ours, other, job, rounds=1, seconds=0.0).difference == 0


def test_what_is_no_checkout_is_refused(ours, tmp_path):
    (tmp_path / "liveavatar").mkdir()
    with pytest.raises(ModelError, match=r"no checkout .* liveavatar/models/wan/causal_model_s2v.py is missing"):
        OriginalNetwork(tmp_path, ours.nets())


def test_a_missing_module_is_named(ours, tmp_path):
    before, modules = state_of_the_process(), set(sys.modules)
    with pytest.raises(ModelError, match=r"module easydict_of_tomorrow is missing. Install easydict_of_tomorrow"):
        OriginalNetwork(written(tmp_path, "from easydict_of_tomorrow.easy import EasyDict"), ours.nets())
    assert state_of_the_process() == before
    assert set(sys.modules) == modules


def test_a_missing_file_of_the_checkout_is_named_as_it_is_there(ours, tmp_path):
    with pytest.raises(ModelError, match=r"module liveavatar.models.wan.elsewhere is missing. Name a clone"):
        OriginalNetwork(written(tmp_path, "from .elsewhere import x"), ours.nets())


def test_another_network_is_refused(ours, tmp_path):
    network = IMPORTS + "class CausalWanModel_S2V(torch.nn.Module):\n    pass"
    with pytest.raises(ModelError, match=r"does not take these weights"):
        OriginalNetwork(written(tmp_path, network), ours.nets())
    with pytest.raises(ModelError, match=r"cannot be imported \(AttributeError: .*CausalWanModel_S2V"):
        OriginalNetwork(written(tmp_path, IMPORTS), ours.nets())


def test_weights_it_cannot_share_are_refused(tmp_path):
    part, source = ModelSlice.whole(CONFIG), written(tmp_path, IMPORTS)
    with pytest.raises(ModelError, match=r"weights of one dtype on one device"):
        OriginalNetwork(source, [TinyComponents(CONFIG).transformer(part, "cpu", torch.float32, "int8")])
    with pytest.raises(ModelError, match=r"does not work in torch.bfloat16 on cpu"):
        OriginalNetwork(source, [TinyComponents(CONFIG).transformer(part, "cpu", torch.bfloat16)])


def test_source_is_changed_where_it_must_be_and_nowhere_else(tmp_path):
    network = f"""{IMPORTS}
class CausalWanModel_S2V:
    place = torch.zeros(1).to("cuda").device
    autocast = torch.amp.autocast("cuda", enabled=False).device
    cast, kept = torch.bfloat16, torch.float16
    width, other = 5120, 5121
    compiled = COMPILE
    package = model.__name__
"""
    switches = "import torch\nCOMPILE = True\nprint('COMPILE')\ntorch._dynamo.config.cache_size_limit = 77"
    folder, before = written(tmp_path, network, switches=switches), state_of_the_process()
    source = import_original(folder, 24, torch.float32, CPU)
    found = source.network
    assert (found.place, found.autocast, found.cast, found.kept) == (CPU, "cuda", torch.float32, torch.float16)
    assert (found.width, found.other, found.compiled, source.recompile_limit) == (24, 5121, False, 77)
    assert found.package.startswith("liveavatar_original_") and found.package in sys.modules
    assert state_of_the_process() == before
    unchanged = import_original(folder, 5120, torch.bfloat16, CPU, compiled=True).network
    assert (unchanged.cast, unchanged.width, unchanged.compiled) == (torch.bfloat16, 5120, True)


def test_memory_of_a_step_at_the_real_size():
    taken = original_bytes(WAN2_2_S2V_14B, (704, 384))
    cache = 2 * 40 * (12 + 2.5) * (704 * 384 / 256) * 5120 * 2
    assert cache == pytest.approx(12.5e9, rel=0.01)
    assert taken - cache == pytest.approx(1.6e9, rel=0.02)
