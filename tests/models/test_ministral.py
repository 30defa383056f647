"""Configurations of Ministral and Ministral 3: read as transformers reads them, or refused by name. Logits: test_families.py."""

from typing import Any

import pytest
import torch

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models import ministral, ministral3
from alize.models.registry import family_for
from alize.models.rotary import Yarn

MINISTRAL_8B: dict[str, Any] = {
    "architectures": ["MinistralForCausalLM"],
    "model_type": "ministral",
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": 32768,
    "layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 9,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000000.0,
    "tie_word_embeddings": False,
}
ROPE: dict[str, Any] = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 16.0,
    "llama_4_scaling_beta": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16384,
    "rope_theta": 1000000.0,
    "rope_type": "yarn",
    "type": "yarn",
}
MINISTRAL3_8B: dict[str, Any] = {
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "vocab_size": 131072,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-05,
    "rope_parameters": ROPE,
    "sliding_window": None,
    "tie_word_embeddings": False,
}


def edited(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (config | changes).items() if value is not ...}


def read(config: dict[str, Any], **changes: Any) -> Any:
    whole = edited(config, **changes)
    return family_for(whole).config.from_dict(whole)


def roped(**changes: Any) -> dict[str, Any]:
    return edited(ROPE, **changes)


def test_the_published_ministral() -> None:
    config = read(MINISTRAL_8B)
    assert isinstance(config, ministral.Config)
    assert config.windows == (0, 32768, 32768, 32768) * 9
    assert (config.rope_theta, config.head_size, config.max_positions) == (1e8, 128, 131072)


def test_layer_types_may_be_missing() -> None:
    """Then every layer slides, or none where there is no window."""
    assert set(read(MINISTRAL_8B, layer_types=...).windows) == {32768}
    assert set(read(MINISTRAL_8B, layer_types=..., sliding_window=...).windows) == {4096}
    assert set(read(MINISTRAL_8B, layer_types=None, sliding_window=None).windows) == {0}
    assert set(read(MINISTRAL_8B, layer_types=["full_attention"] * 36, sliding_window=None).windows) == {0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_types": ["chunked_attention"] * 36}, "chunked_attention"),
        ({"layer_types": ["full_attention"] * 35}, "there must be 36, one for each layer"),
        ({"layer_types": "full_attention"}, "layer_types 'full_attention'"),
        ({"sliding_window": None}, "with sliding_window None: there must be 36, one for each layer, and each full_attention"),
        ({"architectures": ["MistralForCausalLM"]}, "only MinistralForCausalLM"),
        ({"rope_parameters": ROPE}, "yarn"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"logit_scale": 0.5}, "logit_scale = 0.5"),
    ],
)
def test_a_ministral_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel) as error:
        read(MINISTRAL_8B, **changes)
    assert named in str(error.value)


def test_the_published_ministral3() -> None:
    config = read(MINISTRAL3_8B)
    assert isinstance(config, ministral3.Config)
    assert config.yarn == Yarn(
        factor=16.0, original_max_positions=16384, beta_fast=32.0, beta_slow=1.0, attention_factor=1.0, truncate=True
    )
    assert (config.query_beta, config.rope_theta, set(config.windows)) == (0.1, 1e6, {0})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rope_parameters": ...},
        {"rope_parameters": ..., "rope_scaling": ROPE},
        {"rope_parameters": roped(mscale_all_dim=0.5)},
        {"rope_parameters": roped(mscale=...)},
        {"rope_parameters": roped(mscale=..., factor=1.0)},
        {"rope_parameters": roped(factor=None)},
        {"rope_parameters": roped(beta_fast=None, beta_slow=...)},
        {"rope_parameters": roped(attention_factor=1.25, rope_theta=...), "rope_theta": 5e5},
        {"rope_parameters": roped(rope_theta=...)},
        {"rope_parameters": roped(original_max_position_embeddings=..., max_position_embeddings=7)},
        {"head_dim": ..., "max_position_embeddings": ..., "pad_token_id": ...},
        {"head_dim": 64, "num_key_value_heads": 32, "num_hidden_layers": 3},
        {"sliding_window": 4096},
        {"rms_norm_eps": ..., "tie_word_embeddings": True},
    ],
)
def test_a_ministral3_is_read_as_transformers_reads_it(changes: dict[str, Any]) -> None:
    from transformers import Ministral3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    ours, theirs = read(MINISTRAL3_8B, **changes), Ministral3Config.from_dict(edited(MINISTRAL3_8B, **changes))
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](theirs)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.yarn.attention_factor == pytest.approx(attention_factor, rel=1e-12)
    angles = ministral3.Model(tiny(ours)).angles(torch.tensor([[1]]))
    found = torch.atan2(angles.key_sin, angles.key_cos)[0, 0]
    torch.testing.assert_close(found, frequencies, rtol=1e-5, atol=1e-7)
    assert (ours.query_beta, ours.yarn.original_max_positions) == tuple(
        theirs.rope_parameters[key] for key in ("llama_4_scaling_beta", "original_max_position_embeddings")
    )
    assert (ours.head_size, ours.num_kv_heads, ours.max_positions) == (
        theirs.head_dim, theirs.num_key_value_heads, theirs.max_position_embeddings
    )  # fmt: skip
    assert set(ours.windows) == {theirs.sliding_window or 0}
    assert (ours.rms_norm_eps, ours.pad_token_id) == (theirs.rms_norm_eps, theirs.pad_token_id)
    assert ours.tie_embeddings == theirs.tie_word_embeddings


def tiny(config: ministral3.Config) -> ministral3.Config:
    """The same angles, next to no weights."""
    from dataclasses import replace

    return replace(config, vocab_size=2, hidden_size=2, intermediate_size=2, num_layers=1, num_heads=1, num_kv_heads=1)


def test_query_scale_is_that_of_transformers() -> None:
    from transformers.models.ministral3.modeling_ministral3 import get_llama_4_attn_scale

    config = read(MINISTRAL3_8B, rope_parameters=roped(original_max_position_embeddings=10))
    positions = torch.tensor([[0, 1, 9, 10, 19, 20, 29, 30, 100_000, 262_143]])
    ours, theirs = ministral3.query_scale(positions, config), get_llama_4_attn_scale(positions, 0.1, 10)
    torch.testing.assert_close(ours, theirs[:, 0, :, 0], rtol=1e-6, atol=0)
    assert ours[0, :3].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope_type 'default'; only \"yarn\""),
        ({"rope_parameters": roped(rope_type="longrope")}, "longrope"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_type 'default'"),
        ({"rope_parameters": roped(short_factor=[1.0])}, "short_factor"),
        ({"rope_parameters": roped(partial_rotary_factor=0.5)}, "partial_rotary_factor"),
        ({"architectures": ["MistralForCausalLM"]}, "only Ministral3ForCausalLM"),
        ({"layer_types": ["full_attention", "sliding_attention"] * 17, "sliding_window": 4}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_a_ministral3_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel) as error:
        read(MINISTRAL3_8B, **changes)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("rope", "named"),
    [
        ("yarn", "rope_parameters"),
        (roped(llama_4_scaling_beta=...), "llama_4_scaling_beta None"),
        (roped(llama_4_scaling_beta=-1), "llama_4_scaling_beta -1"),
        (roped(factor="16"), "factor"),
        (roped(original_max_position_embeddings=0), "original_max_position_embeddings"),
        (roped(beta_slow=-1), "beta_slow"),
        (roped(truncate="no"), "truncate"),
    ],
)
def test_rope_values_of_no_sense(rope: Any, named: str) -> None:
    with pytest.raises(CorruptCheckpoint, match=named):
        read(MINISTRAL3_8B, rope_parameters=rope)
