"""Real portraits and voices become videos; they are not part of the project and lie beside it."""

import pytest
from cli.runs import receipt, run

from liveavatar.media.video import probe

PORTRAITS = {
    "boy.jpg": "cyclops_baker.wav",
    "cyclops_baker.jpg": "cyclops_baker.wav",
    "dwarven_blacksmith.jpg": "dwarven_blacksmith.wav",
    "fashion_blogger.jpg": "fashion_blogger.wav",
    "livestream_2.jpg": "fashion_blogger.wav",
}


@pytest.mark.parametrize(("portrait", "voice"), PORTRAITS.items())
def test_a_real_portrait_speaks(shared_data, tmp_path, portrait, voice):
    given = ["--image", shared_data / portrait, "--audio", shared_data / voice, "--size", "128x128", "--seconds", 1]
    ran = run("generate", "--model", "mini", "--threads", 1, *given, "--out", tmp_path / "out.mp4")
    assert ran.code == 0, ran.err
    found = probe(tmp_path / "out.mp4")
    assert found.frames == 25 and found.width * found.height <= 128 * 128 and found.audio_rate == 24000
    assert abs(found.av_difference) <= 0.04 and receipt(tmp_path)["status"] == "complete"


def test_every_portrait_and_voice_is_in_the_table(shared_data):
    there = {p.name for p in shared_data.iterdir() if p.suffix in (".jpg", ".png", ".wav")}
    assert there == PORTRAITS.keys() | set(PORTRAITS.values())
