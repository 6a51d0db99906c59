"""A live talk is measured at the pace of a clock."""

from pathlib import Path

from liveavatar.bench.live import bench_live
from liveavatar.components import open_components
from liveavatar.engine.backend import LocalBackend
from liveavatar.media.audio_file import read_audio
from liveavatar.media.image import read_image
from liveavatar.pipeline import LiveAvatarPipeline
from liveavatar.placement import Placement
from liveavatar.request import Request

ASSETS = Path(__file__).parents[2] / "liveavatar" / "mini" / "assets"


def test_every_block_of_a_talk_is_counted():
    pipeline = LiveAvatarPipeline(open_components("untrained"), LocalBackend(Placement(threads=1)))
    request = Request(size="64x64", steps=1, prompt="A person talks.")
    figures = bench_live(pipeline, read_image(ASSETS / "portrait.png"), read_audio(ASSETS / "voice.wav"), request, 2.0)
    assert figures.blocks >= 1 and 0 <= figures.late <= figures.blocks
    assert figures.first > 0 and figures.lag_95 >= figures.lag >= 0.48
    assert figures.drift == 0 and figures.interrupts == ()
