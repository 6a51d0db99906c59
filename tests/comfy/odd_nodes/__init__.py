"""A second pack for the test server: inputs that no small core node makes, and a look at what the process holds."""

import gc
import json
from collections import Counter
from collections.abc import Iterator

import torch
from comfy_api.v0_0_2 import ComfyExtension, io, ui


class OddConditioning(io.ComfyNode):
    """Conditioning of any width, as the text encoder of another model would make it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OddConditioning",
            category="testing",
            inputs=[io.Int.Input("width", default=77, min=1, max=8192)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, width: int) -> io.NodeOutput:
        return io.NodeOutput([[torch.zeros(1, 5, width), {}]])


class OddAudioEncoder(io.ComfyNode):
    """Core's own wav2vec2 at any width, untrained; core's loader knows the two published widths only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OddAudioEncoder",
            category="testing",
            inputs=[io.Int.Input("width", default=64), io.Int.Input("layers", default=4)],
            outputs=[io.AudioEncoder.Output()],
        )

    @classmethod
    def execute(cls, width: int, layers: int) -> io.NodeOutput:
        from comfy.audio_encoders.audio_encoders import AudioEncoderModel

        shape = {"embed_dim": width, "num_heads": 4, "num_layers": layers}
        kind = {"conv_norm": True, "conv_bias": True, "do_normalize": True, "do_stable_layer_norm": True}
        encoder = AudioEncoderModel({"model_type": "wav2vec2", **shape, **kind})
        chance = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in encoder.model.parameters():
                weight.copy_(0.05 * torch.randn(weight.shape, generator=chance))
        return io.NodeOutput(encoder)


class OddClip(io.ComfyNode):
    """Core's own CLIP of the type wan at a small width, untrained; core's loader knows the published width only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OddClip",
            category="testing",
            inputs=[io.Int.Input("width", default=64)],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, width: int) -> io.NodeOutput:
        import comfy.sd
        import comfy.text_encoders.wan as wan

        class Target:
            clip, tokenizer, params = wan.te(), wan.WanT5Tokenizer, {}

        shape = {"d_model": width, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2, "vocab_size": 60}
        clip = comfy.sd.CLIP(
            Target, tokenizer_data={"spiece_model": _spiece()}, model_options={"umt5xxl_model_config": shape}
        )
        chance = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in clip.cond_stage_model.parameters():
                weight.copy_(0.05 * torch.randn(weight.shape, generator=chance))
        return io.NodeOutput(clip)


def _spiece() -> torch.Tensor:
    """A tokenizer of 60 pieces, learnt from one sentence, as a text encoder's file carries it."""
    import io as files

    from sentencepiece import SentencePieceTrainer

    written = files.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["A happy woman talks in front of a blue wall."] * 20),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


class OddAudioBatch(io.ComfyNode):
    """Several sounds in one AUDIO, each begun later than the one before; only loudness would not be heard."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OddAudioBatch",
            category="testing",
            inputs=[io.Audio.Input("audio"), io.Int.Input("count", default=2)],
            outputs=[io.Audio.Output()],
        )

    @classmethod
    def execute(cls, audio: dict, count: int) -> io.NodeOutput:
        waveform = audio["waveform"]
        waveform = torch.cat([waveform.roll(-number * waveform.shape[-1] // count, -1) for number in range(count)])
        return io.NodeOutput({**audio, "waveform": waveform})


class OddTally(io.ComfyNode):
    """Bytes of weights that are alive in the process, and whose they are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OddTally",
            category="testing",
            inputs=[
                io.String.Input("when", tooltip="Any word; another one asks anew."),
                io.String.Input("after", optional=True, force_input=True, tooltip="Waits for this."),
            ],
            outputs=[io.String.Output()],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, when: str, after: str | None = None) -> io.NodeOutput:
        gc.collect()
        modules = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.nn.Module)]
        owners = {_package(type(module).__module__) for module in modules if any(True for _ in weights_of(module))}
        sizes = {weight.data_ptr(): weight.nbytes for module in modules for weight in weights_of(module)}
        text = json.dumps({"bytes": sum(sizes.values()), "owners": sorted(owners - {"torch"})})
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def weights_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The weights of a module itself that take memory."""
    return (weight for weight in module.parameters(recurse=False) if weight.device.type != "meta")


def _package(name: str) -> str:
    """The part of the library ("model", "vae", "encoders") where a module of this pack stands; else its first name."""
    _, inside, part = name.partition(".liveavatar.")
    return (part if inside else name).split(".")[0]


ENCODERS = ("UMT5EncoderModel", "Wav2Vec2FeatureEncoder", "WanEncoder3d")
_calls: Counter[str] = Counter()


def _count(module: torch.nn.Module, _: object) -> None:
    if type(module).__name__ in ENCODERS:
        _calls[type(module).__name__] += 1


torch.nn.modules.module.register_module_forward_pre_hook(_count)


class OddCalls(io.ComfyNode):
    """How often encoders of text, sound and pictures have been called in this process, by class."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OddCalls",
            category="testing",
            inputs=[io.String.Input("after", force_input=True, tooltip="Waits for this.")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, after: str) -> io.NodeOutput:
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(_calls)))


class OddExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [OddConditioning, OddAudioEncoder, OddClip, OddAudioBatch, OddTally, OddCalls]


async def comfy_entrypoint() -> OddExtension:
    return OddExtension()
