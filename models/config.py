"""Strict reading of config.json, shared by the families: every key is used, known to change nothing, or refused by name."""

from collections.abc import Collection, Mapping
from typing import Any

from alize.errors import CorruptCheckpoint, UnsupportedModel

__all__ = ["IGNORED", "NEUTRAL", "integer", "number", "refuse_unknown", "rope_theta", "token_ids"]

_SOURCE = "says where the file came from"
_TRAINING = "only training reads it"
_OUTPUT = "chooses what Hugging Face's forward returns, not the numbers"
_KERNEL = "chooses a kernel of Hugging Face's, not the maths"
_GENERATION = "a generation default of old transformers versions; generation has its own options"
_TASK = "labels of a classification head, which a causal language model has not"

IGNORED: dict[str, str] = {
    "_name_or_path": _SOURCE,
    "transformers_version": _SOURCE,
    "unsloth_fixed": _SOURCE,
    "unsloth_version": _SOURCE,
    "torch_dtype": "the tensors carry their own dtype",
    "dtype": "the tensors carry their own dtype",
    "tokenizer_class": "the tokenizer's own files are used",
    "use_cache": "alize always keeps the cache",
    "attention_dropout": "dropout is off outside training",
    "initializer_range": _TRAINING,
    "gradient_checkpointing": _TRAINING,
    "neftune_noise_alpha": _TRAINING,
    "output_attentions": _OUTPUT,
    "output_hidden_states": _OUTPUT,
    "return_dict": _OUTPUT,
    "use_return_dict": _OUTPUT,
    "torchscript": _KERNEL,
    "use_bfloat16": _KERNEL,
    "tf_legacy_loss": _KERNEL,
    "_attn_implementation": _KERNEL,
    "_attn_implementation_autoset": _KERNEL,
    "_attn_implementation_internal": _KERNEL,
    "attn_implementation": _KERNEL,
    "_flash_attn_2_enabled": _KERNEL,
    "_experts_implementation": _KERNEL,
    "cache_implementation": _KERNEL,
    "chunk_size_feed_forward": "cuts the MLP into row blocks: the same maths",
    "is_decoder": "a causal language model always is",
    "id2label": _TASK,
    "label2id": _TASK,
    "num_labels": _TASK,
    "problem_type": _TASK,
    "finetuning_task": _TASK,
    "task_specific_params": _TASK,
    "output_router_logits": _OUTPUT,
    "router_aux_loss_coef": _TRAINING,
    "router_jitter_noise": _TRAINING,
    "sep_token_id": "no causal language model uses it",
    "decoder_start_token_id": "no causal language model uses it",
    "cross_attention_hidden_size": "there is no cross attention (add_cross_attention is checked)",
} | dict.fromkeys(
    """bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p""".split(),  # noqa: SIM905
    _GENERATION,
)

NEUTRAL: dict[str, tuple[Any, ...]] = {  # accepted with these values only: any other would change the maths
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "pretraining_tp": (1, None),
    "partial_rotary_factor": (1, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "auto_map": ({}, None),
}


def refuse_unknown(config: Mapping[str, Any], used: Collection[str]) -> None:
    """Raises UnsupportedModel naming the keys that are not in `used` and that nothing here knows."""
    for key, allowed in NEUTRAL.items():
        if key in config and not any(config[key] == value and _kind(config[key]) == _kind(value) for value in allowed):
            accepted = " or ".join(repr(value) for value in allowed)
            raise UnsupportedModel(f"config.json: {key} = {config[key]!r} cannot be expressed; only {accepted} can")
    unknown = sorted(set(config) - set(used) - set(IGNORED) - set(NEUTRAL))
    if unknown:
        raise UnsupportedModel(
            f"config.json: unknown key {', '.join(f'{key} = {config[key]!r}' for key in unknown)}; "
            "alize cannot tell whether it changes the model: remove it if it does not"
        )


def _kind(value: object) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def integer(config: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    """A count of at least 1; a missing or null key is `default`, or an error when there is none."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CorruptCheckpoint(f"config.json: {key} is {value!r}, not a whole number of at least 1; fetch the file again")
    return value


def number(config: Mapping[str, Any], key: str, *, default: float | None = None) -> float:
    """A number above 0; a missing or null key is `default`, or an error when there is none."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise CorruptCheckpoint(f"config.json: {key} is {value!r}, not a number above 0; fetch the file again")
    return float(value)


def token_ids(config: Mapping[str, Any], key: str, *, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """One id or a list of ids as a tuple; null is none, a missing key is `default`."""
    value = config.get(key, list(default))
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise CorruptCheckpoint(f"config.json: {key} is {value!r}, not a token id or a list of them; fetch the file again")
    return tuple(ids)


def rope_theta(config: Mapping[str, Any], *, default: float) -> float:
    """The rotary base, from `rope_theta` (old layout) or `rope_parameters` (transformers 5).

    Raises UnsupportedModel for a rope type other than "default", in either layout, and for parameters it does not know.
    """
    theta = number(config, "rope_theta", default=default)
    for key in ("rope_scaling", "rope_parameters"):
        parameters = config.get(key)
        if parameters is None:
            continue
        if not isinstance(parameters, dict):
            raise CorruptCheckpoint(f"config.json: {key} is {parameters!r}, not an object; fetch the file again")
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default":
            raise UnsupportedModel(f'config.json: {key} has rope_type {kind!r}; only "default" can be expressed')
        unknown = sorted(set(parameters) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
        if unknown or parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise UnsupportedModel(f"config.json: {key} = {parameters!r} cannot be expressed; only rope_theta can be set")
        theta = number(parameters, "rope_theta", default=theta)
    return theta
