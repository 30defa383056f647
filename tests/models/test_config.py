"""Config.from_dict: the published configurations are read, everything that cannot be expressed is refused by name."""

from typing import Any

import pytest

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models.config import IGNORED, NEUTRAL
from alize.models.mistral import USED, Config
from alize.models.registry import FAMILIES, family_for

V01: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
V02 = V01 | {"attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None, "transformers_version": "4.36.0"}
V03 = V02 | {"vocab_size": 32768, "transformers_version": "4.42.0.dev0"}
NEMO = V02 | {
    "head_dim": 128,
    "hidden_size": 5120,
    "max_position_embeddings": 1024000,
    "num_hidden_layers": 40,
    "vocab_size": 131072,
}
SMALL_24B = NEMO | {
    "intermediate_size": 32768,
    "max_position_embeddings": 32768,
    "rope_theta": 100000000.0,
    "transformers_version": "4.47.0",
}
CODESTRAL = V03 | {
    "hidden_size": 6144,
    "intermediate_size": 16384,
    "num_attention_heads": 48,
    "num_hidden_layers": 56,
}
ZEPHYR = V01 | {"_name_or_path": "mistralai/Mistral-7B-v0.1", "pad_token_id": 2, "transformers_version": "4.35.0"}
CHAT_FINETUNE = V01 | {  # extended vocabulary, several ends of text, keys that training tools leave behind
    "vocab_size": 32002,
    "eos_token_id": [2, 32000],
    "pretraining_tp": 1,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "use_cache": False,
    "unsloth_version": "2024.9",
    "_attn_implementation": "flash_attention_2",
    "torch_dtype": "float16",
}
TRANSFORMERS_5 = {key: value for key, value in V02.items() if key not in ("rope_theta", "torch_dtype")} | {
    "dtype": "bfloat16",
    "head_dim": None,
    "layer_types": ["full_attention"] * 32,
    "pad_token_id": None,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
}


def read(config: dict[str, Any], **changes: Any) -> Config:
    return Config.from_dict({key: value for key, value in (config | changes).items() if value is not ...})


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (V01, {"windows": (4096,) * 32, "head_size": 128, "rope_theta": 1e4, "max_positions": 32768}),
        (V02, {"windows": (0,) * 32, "rope_theta": 1e6, "num_kv_heads": 8, "rms_norm_eps": 1e-5}),
        (V03, {"vocab_size": 32768, "bos_token_id": 1, "eos_token_ids": (2,), "pad_token_id": None}),
        (NEMO, {"head_size": 128, "num_heads": 32, "hidden_size": 5120, "max_positions": 1024000}),
        (SMALL_24B, {"rope_theta": 1e8, "intermediate_size": 32768}),
        (CODESTRAL, {"head_size": 128, "num_layers": 56}),
        (ZEPHYR, {"pad_token_id": 2, "windows": (4096,) * 32}),
        (CHAT_FINETUNE, {"eos_token_ids": (2, 32000), "vocab_size": 32002, "rope_theta": 1e4}),
        (TRANSFORMERS_5, {"rope_theta": 1e6, "windows": (0,) * 32, "head_size": 128}),
    ],
    ids=["v0.1", "v0.2", "v0.3", "nemo", "small-24b", "codestral", "zephyr", "finetune", "transformers-5"],
)
def test_published_configurations(published: dict[str, Any], expected: dict[str, Any]) -> None:
    config = family_for(published).config.from_dict(published)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("published", [V01, V02, NEMO, CHAT_FINETUNE, TRANSFORMERS_5])
def test_same_reading_as_transformers(published: dict[str, Any]) -> None:
    from transformers import MistralConfig

    ours, theirs = Config.from_dict(published), MistralConfig.from_dict(published)
    assert ours.head_size == theirs.head_dim
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.windows[0] == (theirs.sliding_window or 0)


def test_missing_keys_mean_what_they_mean_to_transformers() -> None:
    from transformers import MistralConfig

    bare = {
        key: V01[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    ours, theirs = Config.from_dict(bare), MistralConfig.from_dict(bare)
    assert set(ours.windows) == {theirs.sliding_window} == {4096}
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.max_positions == theirs.max_position_embeddings
    assert (ours.bos_token_id, ours.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))
    assert ours.tie_embeddings == theirs.tie_word_embeddings


def test_null_key_value_heads_is_as_many_as_query_heads() -> None:
    assert read(V01, num_key_value_heads=None).num_kv_heads == 32


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"pretraining_tp": 2}, "pretraining_tp = 2"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_other.Other"}}, "auto_map"),
        ({"layer_types": ["full_attention"] * 32}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 31}, "layer_types"),
        ({"sliding_window": None, "layer_types": ["sliding_attention"] * 32}, "layer_types"),
        ({"architectures": ["MistralForSequenceClassification"]}, "MistralForSequenceClassification"),
        ({"attention_sinks": 4}, "attention_sinks = 4"),
        ({"logit_scale": 0.5, "attn_logit_softcapping": 30}, "attn_logit_softcapping = 30, logit_scale = 0.5"),
    ],
)
def test_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel) as error:
        read(V01, **changes)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", ...),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", True),
        ("vocab_size", "32000"),
        ("num_key_value_heads", 7),
        ("head_dim", 127),
        ("sliding_window", 0),
        ("sliding_window", -1),
        ("rope_theta", 0),
        ("rope_theta", float("inf")),
        ("rms_norm_eps", "tiny"),
        ("rope_parameters", 1e4),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [2, None]),
        ("tie_word_embeddings", "yes"),
        ("max_position_embeddings", 1.5),
    ],
)
def test_values_of_no_sense(key: str, value: Any) -> None:
    with pytest.raises(CorruptCheckpoint) as error:
        read(V01, **{key: value})
    assert "key/value heads" in str(error.value) or key in str(error.value)


@pytest.mark.parametrize("model_type", [None, "llama", "mistral3", "mistral4", 7, ["mistral"]])
def test_other_families_are_refused_by_name(model_type: Any) -> None:
    with pytest.raises(UnsupportedModel, match="model_type"):
        family_for({"model_type": model_type})


def test_every_key_has_one_place() -> None:
    assert not set(USED) & set(IGNORED)
    assert not set(USED) & set(NEUTRAL)
    assert not set(IGNORED) & set(NEUTRAL)
    assert all(IGNORED.values())
    assert all(name == family.model_type for name, family in FAMILIES.items())
