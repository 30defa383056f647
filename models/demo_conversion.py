"""The demo model's GGUF file rewritten as an ordinary Hugging Face folder of a Mistral.

SmolLM2-135M-Instruct has exactly Mistral's architecture. We read the GGUF ourselves instead of through `transformers`, whose
reader keeps the weights packed, changes from version to version and forgets that this tokenizer splits digits: so the same
bytes come out on every machine.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy
    import torch
    from gguf import GGUFReader

__all__ = ["CONFIG", "config_json", "convert", "json_text"]

SHARD_BYTES = 140_000_000
SPECIAL_TOKENS = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
# GGUF's name of a layer's tensor -> Hugging Face's
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Read off the GGUF; rope_theta stands where every transformers version finds it.
CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 576,
    "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "model_type": "mistral",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 49152,
}


def config_json(window: int) -> str:
    """The text of config.json; `window` 0 is full attention."""
    return json_text({**CONFIG, "sliding_window": window or None})


def convert(gguf: Path, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Writes everything but config.json into `folder`; `progress` gets tensors done and in all."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    _write_tokenizer(reader, folder)
    _write_weights(reader, folder, progress)


def json_text(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _write_weights(reader: "GGUFReader", folder: Path, progress: Callable[[int, int], None]) -> None:
    """bf16 shards of at most SHARD_BYTES and their index."""
    from safetensors.torch import save_file

    shards: list[dict[str, torch.Tensor]] = [{}]
    size = total = 0
    for done, (name, tensor) in enumerate(_tensors(reader), start=1):
        if size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
        progress(done, len(reader.tensors))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json_text(index), encoding="utf-8")


def _tensors(reader: "GGUFReader") -> Iterator[tuple[str, "torch.Tensor"]]:
    """Each tensor under its Hugging Face name, as bf16."""
    import torch
    from gguf import dequantize

    for entry in reader.tensors:
        weight = dequantize(entry.data, entry.tensor_type)
        if ".attn_q." in entry.name:
            weight = _unpermute(weight, CONFIG["num_attention_heads"])
        if ".attn_k." in entry.name:
            weight = _unpermute(weight, CONFIG["num_key_value_heads"])
        yield _hugging_face_name(entry.name), torch.from_numpy(weight.copy()).to(torch.bfloat16)


def _unpermute(weight: "numpy.ndarray[Any, Any]", heads: int) -> "numpy.ndarray[Any, Any]":
    """llama.cpp pairs neighbouring rows for its rotary embedding (0 1 2 3); Hugging Face pairs the halves (0 2 1 3)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _hugging_face_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, tensor, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_TENSORS[tensor]}.weight"


def _write_tokenizer(reader: "GGUFReader", folder: Path) -> None:
    """tokenizer.json, its configuration, the special tokens, the chat template and the generation config."""
    files = {
        "tokenizer.json": json_text(_tokenizer(reader)),
        # model_max_length is left out on purpose: a windowed model has none
        "tokenizer_config.json": json_text(
            {
                **SPECIAL_TOKENS,
                "add_prefix_space": False,
                "clean_up_tokenization_spaces": False,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        ),
        "special_tokens_map.json": json_text(SPECIAL_TOKENS),
        "chat_template.jinja": str(_field(reader, "tokenizer.chat_template")),
        "generation_config.json": json_text({key: CONFIG[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _tokenizer(reader: "GGUFReader") -> dict[str, Any]:
    """Byte-level BPE that splits numbers into digits (llama.cpp's pre-tokenizer "smollm")."""
    tokens = _field(reader, "tokenizer.ggml.tokens")
    control = [index for index, kind in enumerate(_field(reader, "tokenizer.ggml.token_type")) if kind == 3]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": tokens[index], **flags} for index in control],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in _field(reader, "tokenizer.ggml.merges")],
        },
    }


def _field(reader: "GGUFReader", name: str) -> Any:
    field = reader.fields[name]
    return field.contents()
