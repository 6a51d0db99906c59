"""The length of a clip decides where noise is cut, how far back a block attends, and when the sink is renewed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine.tiny import TinyComponents, latents, tiny_config, tiny_effective, tiny_job, tiny_plan

from liveavatar.model.attention import KeyValue
from liveavatar.model.kv_cache import SinkKV, SinkRecorder
from liveavatar.model.rope import Rope, RopeGrid, apply_rope
from liveavatar.model.transformer import EMBEDDERS, ModelSlice
from liveavatar.noise_schedule import NoiseSchedule
from liveavatar.session import VideoTask

BLOCKS = 9
CONFIG = tiny_config()


def job_of(clip_blocks: int, blocks: int = BLOCKS, steps: int = 3) -> VideoTask:
    return tiny_job(CONFIG, dataclasses.replace(tiny_effective(blocks, steps), clip_blocks=clip_blocks))


class PlainRing:
    """Keys and values of one layer and step in `clip_frames * frame_tokens` rows, as the published model lays them out.

    A block writes its rows at its token position modulo the rows, and attends to all that was ever written.
    """

    def __init__(self, rows: int):
        self.k, self.v = (torch.full((rows, CONFIG.num_heads, CONFIG.head_dim), torch.nan) for _ in range(2))

    def at(self, start: int, sink: SinkKV, reference: Rope) -> PlainRing:
        self.start, self.sink, self.reference = start, sink, reference
        return self

    def update(self, k: torch.Tensor, v: torch.Tensor, rope: Rope) -> tuple[KeyValue, KeyValue]:
        rows = len(self.k)
        slot, valid = self.start % rows, min(self.start + len(k), rows)
        self.k[slot : slot + len(k)], self.v[slot : slot + len(k)] = apply_rope(k, rope), v
        sink_k = apply_rope(self.sink.reference_k, self.reference), self.sink.motion_k
        return (self.k[:valid], self.v[:valid]), (torch.cat(sink_k), self.sink.v)

    def release(self) -> None:
        pass


@torch.inference_mode()
def made_by_hand(job: VideoTask) -> torch.Tensor:
    """The published order of work on one device: clip by clip, block by block, step by step."""
    e, cpu, dtype = job.resolved, torch.device("cpu"), torch.float32
    components, schedule, clip_frames = TinyComponents(CONFIG), NoiseSchedule.flow_matching(e.steps), 3 * e.clip_blocks
    net = components.transformer(ModelSlice.whole(CONFIG), cpu, dtype)
    conditioner = components.transformer(EMBEDDERS, cpu, dtype)
    rows, columns = (n // 2 for n in e.latent_size)
    grid = RopeGrid(rows, columns, CONFIG.head_dim, cpu)
    text = net.text_kv(conditioner.embed_text(job.conditioning.prompt))
    time = conditioner.embed_timesteps([*schedule.timesteps, 0.0])
    kv_caches = [[PlainRing(clip_frames * grid.tokens) for _ in net.slice.layers] for _ in range(e.steps)]

    def sink_of(reference: torch.Tensor) -> list[SinkKV]:
        memories = [SinkRecorder(grid.tokens) for _ in net.slice.layers]
        tokens = net.embed_sink(reference, job.conditioning.motion)
        net.run_layers(tokens, net.modulation(time.layers[-1]), grid.reference() + grid.motion(), text, memories, None)
        return [m.sink for m in memories if m.sink is not None]

    made: list[torch.Tensor] = []
    for clip in range(-(-e.blocks // e.clip_blocks)):
        generator = torch.Generator().manual_seed(e.seed + clip)
        noise = torch.randn(16, clip_frames, *e.latent_size, generator=generator)
        if clip < 2:
            sink = sink_of(made[0][:, :1] if clip else job.conditioning.reference)
        for block in range(clip * e.clip_blocks, min((clip + 1) * e.clip_blocks, e.blocks)):
            first = 3 * (block - clip * e.clip_blocks)
            latent = noise[:, first : first + 3]
            audio = conditioner.embed_audio(job.conditioning.audio.block(block))
            for step in range(e.steps):
                reference = grid.reference(job.distance.reference_time_id(e.seed, block, step))
                seen = [
                    kv_cache.at(3 * block * grid.tokens, s, reference)
                    for kv_cache, s in zip(kv_caches[step], sink, strict=True)
                ]
                tokens = net.run_layers(
                    net.embed_block(latent), net.modulation(time.layers[step]), grid.block(block), text, seen, audio
                )
                velocity = net.velocity(tokens, time.head[step], rows, columns)
                latent = schedule.euler(step, latent, velocity)
            made.append(latent)
    return torch.cat(made, 1)


@pytest.mark.parametrize("clip_blocks", [1, 2, 3, 4, 5, 20])
def test_the_video_is_the_one_made_by_hand(clip_blocks: int) -> None:
    job = job_of(clip_blocks)
    assert torch.equal(latents(CONFIG, job), made_by_hand(job))


@pytest.mark.parametrize("clip_blocks", [1, 3, 5])
@pytest.mark.parametrize("cut", ["3x1", "1x3", "2x2"])
def test_every_cut_gives_equal_bits(clip_blocks: int, cut: str) -> None:
    job = job_of(clip_blocks)
    assert torch.equal(latents(CONFIG, job, cut), latents(CONFIG, job))


def test_another_length_is_another_video() -> None:
    made = {clip_blocks: latents(CONFIG, job_of(clip_blocks, 2, 1)) for clip_blocks in (1, 2, 4)}
    assert not any(torch.equal(made[a], made[b]) for a, b in ((1, 2), (1, 4), (2, 4)))


@pytest.mark.parametrize("clip_blocks", [1, 3, 7])
def test_a_plan_counts_the_rings_of_its_clips(clip_blocks: int) -> None:
    effective = job_of(clip_blocks).resolved
    plan, usual = tiny_plan(CONFIG, effective), tiny_plan(CONFIG, job_of(4).resolved)
    assert plan.clip_blocks == clip_blocks and usual.clip_blocks == 4
    kv_cache = 2 * 3 * clip_blocks * effective.frame_tokens * CONFIG.dim * 4
    assert plan.stages[0].kv_cache == kv_cache * CONFIG.num_layers * effective.steps
    assert plan.stages[0].workspace == usual.stages[0].workspace, "no window is copied"
