"""The encoders of a golden case: transformers modules of its dimensions, filled with its weights."""

import torch
from golden.cases import Case

from liveavatar.weights.formats import umt5_to_transformers


def wav2vec2(case: Case) -> torch.nn.Module:
    """`Wav2Vec2Model` of an `audio` case."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    model = Wav2Vec2Model(Wav2Vec2Config(**case.info["w2v_config"])).eval()
    weights = case.sibling("wav2vec2_weights").state_dict()
    model.load_state_dict({k.removeprefix("wav2vec2."): v for k, v in weights.items() if not k.startswith("lm_head")})
    return model


def umt5(case: Case) -> torch.nn.Module:
    """`UMT5EncoderModel` of a `t5` case."""
    from transformers import UMT5Config, UMT5EncoderModel

    info, weights = case.info["config"]["model"], case.sibling("t5_weights").state_dict()
    config = UMT5Config(
        vocab_size=info["vocab_size"],
        d_model=info["dim"],
        d_kv=info["dim_attn"] // info["num_heads"],
        d_ff=info["dim_ffn"],
        num_layers=info["encoder_layers"],
        num_heads=info["num_heads"],
        relative_attention_num_buckets=info["num_buckets"],
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        is_encoder_decoder=False,
        use_cache=False,
        attn_implementation="eager",
    )
    model = UMT5EncoderModel(config).eval()
    result = model.load_state_dict({umt5_to_transformers(k): v for k, v in weights.items()}, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {"encoder.embed_tokens.weight"}, "tied to shared.weight"
    return model
