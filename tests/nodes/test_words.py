"""Refusals in a graph name widgets, not options of the command line."""

import pytest


@pytest.fixture
def words(pack):
    return pack.nodes.words


@pytest.mark.parametrize(
    ("library", "graph"),
    [
        (
            "What fits: --model big --size 640x384 --steps 4 --gpus 2x24 --host-ram 128 (fp8 weights); --model big "
            "--size 384x256 --steps 4 (plain).",
            "What fits: size 640x384, steps 4, cards 2x24, host_ram 128 (fp8 weights); size 384x256, steps 4 (plain).",
        ),
        ("Try next: fp8 (--weights fp8 --offload-layers 5).", "Try next: fp8 (weights fp8, offload_layers 5)."),
        ("Use less of it (--vram-cap), or keep --kv-offload.", "Use less of it (vram_cap), or keep kv_offload."),
        ("Run `hf download X --lora y --local-dir z` first.", "Run `hf download X --lora y --local-dir z` first."),
        ("hf download X --local-dir z", "hf download X --local-dir z"),
        ("--lorax and --size-of are no options", "--lorax and --size-of are no options"),
        ("Nothing to change.", "Nothing to change."),
    ],
)
def test_options_become_widgets(words, library, graph):
    assert words.in_widgets(library) == graph


def test_an_error_keeps_its_type_and_what_it_carries(pack, words):
    class Special(pack.liveavatar.errors.PlanError):
        stage = 3

    with (
        pytest.raises(Special, match=r"^stages 9x9 is wrong\. Use stages 1x4\.$") as caught,
        words.refused_in_widgets(),
    ):
        raise Special("--stages 9x9 is wrong.", "Use --stages 1x4.")
    assert caught.value.stage == 3 and caught.value.what == "stages 9x9 is wrong."
