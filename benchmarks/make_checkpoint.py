"""Writes a checkpoint with random weights in a published shape, shard by shard: something to build and to measure.

    python -m benchmarks.make_checkpoint SHAPE FOLDER [--layers N] [--seed 0] [--hollow]        from the repository's root

SHAPE is one of SHAPES. Weights are bfloat16, normal with a standard deviation of 0.02 (norms around 1), the same bytes on every
machine. One tensor is in memory at a time; --layers cuts the model short. There is no tokenizer: validation then takes random
tokens. --hollow writes headers, and holes that take no disk for the values: enough for `alize build --dry-run`.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SHAPES", "write_checkpoint"]

_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_7B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
_EXPERTS = {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": None,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
}
SHAPES: dict[str, dict[str, Any]] = {
    # config.json of mistralai/Mistral-7B-v0.1
    "mistral-7b": {**_MISTRAL, **_7B, "max_position_embeddings": 32768, "rope_theta": 1e4, "sliding_window": 4096},
    # mistralai/Mistral-7B-v0.3
    "mistral-7b-v0.3": {
        **_MISTRAL,
        **_7B,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "sliding_window": None,
        "vocab_size": 32768,
    },
    # mistralai/Mistral-Nemo-Base-2407
    "nemo-12b": {
        **_MISTRAL,
        **_7B,
        "head_dim": 128,
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "max_position_embeddings": 128000,
        "rope_theta": 1e6,
        "sliding_window": None,
        "vocab_size": 131072,
    },
    # mistralai/Mixtral-8x7B-v0.1
    "mixtral-8x7b": {**_MISTRAL, **_7B, **_EXPERTS},
    # config.json of mistralai/Mixtral-8x22B-v0.1
    "mixtral-8x22b": {
        **_MISTRAL,
        **_7B,
        **_EXPERTS,
        "hidden_size": 6144,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
        "num_hidden_layers": 56,
        "max_position_embeddings": 65536,
    },
    # what a token of the demo model's Mixtral twin goes through: two experts of 1536
    "demo-active": {
        **_MISTRAL,
        "hidden_size": 576,
        "intermediate_size": 3072,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 1e5,
        "sliding_window": None,
    },
}
SHARD_BYTES = 4_000_000_000
STD = 0.02
_BLOCK = 1 << 24  # numbers drawn together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="fewer layers than the published ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hollow", action="store_true", help="headers only: for a dry run")
    options = parser.parse_args()
    write_checkpoint(options.shape, options.folder, layers=options.layers, seed=options.seed, hollow=options.hollow)


def write_checkpoint(shape: str, folder: Path, *, layers: int | None = None, seed: int = 0, hollow: bool = False) -> Path:
    """Writes FOLDER, which must not exist, and returns it."""
    config = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    folder.mkdir(parents=True)
    shards = list(_shards(config))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard, seed=seed, first=len(weight_map), hollow=hollow)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(2 * math.prod(size) for shard in shards for size in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}, indent=2))
    return folder


def _shards(config: dict[str, Any]) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in _shapes(config):
        if shard and size + 2 * math.prod(shape) > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += 2 * math.prod(shape)
    yield shard


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        for name, rows in (("q", query), ("k", key), ("v", key)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, query)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        if "num_local_experts" in config:
            moe = f"{layer}.block_sparse_moe"
            yield f"{moe}.gate.weight", (config["num_local_experts"], hidden)
            for e in range(config["num_local_experts"]):
                yield from _mlp(f"{moe}.experts.{e}", ("w1", "w3", "w2"), hidden, inner)
        else:
            yield from _mlp(f"{layer}.mlp", ("gate_proj", "up_proj", "down_proj"), hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def _mlp(prefix: str, names: tuple[str, str, str], hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in zip(names, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True):
        yield f"{prefix}.{name}.weight", shape


def _write_shard(path: Path, shard: dict[str, tuple[int, ...]], *, seed: int, first: int, hollow: bool) -> None:
    """A safetensors file, written tensor by tensor: https://github.com/huggingface/safetensors (the format)."""
    header, end = {}, 0
    for name, shape in shard.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        if hollow:
            stream.truncate(8 + len(text) + end)
            return
        for number, (name, shape) in enumerate(shard.items(), start=first):
            for block in _values(name, math.prod(shape), np.random.Generator(np.random.Philox(key=[seed, number]))):
                stream.write(block.tobytes())


def _values(name: str, count: int, random: np.random.Generator) -> Iterator[np.ndarray[Any, Any]]:
    """The upper halves of float32 numbers: bfloat16, rounded towards 0. Norms are drawn around 1: where all are 1 exactly,
    OpenVINO drops the multiplication, and with it the fused node that a build asserts."""
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        values = random.standard_normal(size, np.float32) * np.float32(STD) + np.float32("norm" in name)
        yield (values.view(np.uint32) >> 16).astype(np.uint16)


if __name__ == "__main__":
    main()
