"""Page-locked memory is made once for a backend: videos and models that come one after the other use it again."""

import gc

import torch
from engine.tiny import TinyComponents, tiny_config, tiny_effective, tiny_job

from liveavatar.engine.local import LocalEngine, ModelCache
from liveavatar.offload.pinned_memory import PinnedPool
from liveavatar.planner import make_plan
from liveavatar.storage import StorageConfig

AWAY = StorageConfig(kv_offload=True, offload_text_kv=True, offload_layers=2)


def video(models: ModelCache, components: TinyComponents) -> torch.Tensor:
    job = tiny_job(components.config, tiny_effective(5))
    plan = make_plan(job.resolved, components.config, model="tiny", stages="2x1", storage=AWAY)
    return torch.cat(list(LocalEngine(components, plan, models).run(job)), 1)


def test_a_second_video_makes_no_memory_and_has_the_same_bits():
    components, models = TinyComponents(tiny_config()), ModelCache()
    first, pool = video(models, components), models.pinned
    made = pool.allocations
    assert made == 3, "what is loaded, and the KV cache of each stage"
    assert torch.equal(video(models, components), first)
    assert torch.equal(video(models, components), first)
    assert pool.allocations == made


def test_another_model_of_these_shapes_takes_the_memory_of_the_one_before():
    models = ModelCache()
    video(models, TinyComponents(tiny_config()))
    pool = models.pinned
    made = pool.allocations
    other = TinyComponents(tiny_config())
    here = video(models, other)
    assert pool.allocations == made
    assert torch.equal(here, video(ModelCache(), other))


def test_all_of_it_is_given_back_with_the_rest():
    models = ModelCache()
    video(models, TinyComponents(tiny_config()))
    pool = models.pinned
    gc.collect()
    assert pool.idle_bytes > 0
    models.release()
    gc.collect()
    assert pool.idle_bytes == 0


def test_the_smallest_that_is_large_enough_is_used_and_the_rest_of_it_is_left_alone():
    pool = PinnedPool()
    large, small = pool.take(4000), pool.take(3000)
    large.bytes.fill_(1)
    small.bytes.fill_(2)
    del large, small
    again = pool.take(2500)
    assert again.bytes.nbytes == 2500 and again.bytes.unique().tolist() == [2] and pool.allocations == 2
    assert pool.idle_bytes == 4000


def test_what_does_not_fit_is_given_back_before_more_is_made():
    pool = PinnedPool()
    for nbytes, made in ((1000, 1), (1001, 2), (400, 3)):
        held = pool.take(nbytes)
        assert pool.allocations == made and pool.idle_bytes == 0 and held.bytes.nbytes == nbytes
        del held


def test_memory_that_was_in_use_when_all_was_given_back_is_not_kept():
    pool = PinnedPool()
    held = pool.take(1000)
    pool.clear()
    del held
    assert pool.idle_bytes == 0


def test_a_tensor_that_outlives_its_buffer_keeps_the_memory():
    pool = PinnedPool()
    tensor = pool.take(1000).allocate((10,), torch.float32)
    tensor.fill_(3)
    pool.take(1000).bytes.fill_(0)
    assert pool.allocations == 2 and tensor.tolist() == [3.0] * 10
    del tensor
    assert pool.idle_bytes == 2000


def test_memory_of_a_cycle_is_found():
    pool = PinnedPool()
    cycle: list[object] = [pool.take(1000)]
    cycle.append(cycle)
    del cycle
    pool.take(1000)
    assert pool.allocations == 1
