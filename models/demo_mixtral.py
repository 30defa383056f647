"""The demo model's Mixtral twin: each layer's MLP copied into 8 experts with a little noise, and a random router.

It still writes English, because every expert is nearly the MLP that it was made of; and each expert is its own, so that a wrong
choice or a swapped pair shows in the logits. The layout is the published one of Mixtral, in shards.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from alize.models.demo_conversion import CONFIG, json_text

if TYPE_CHECKING:
    import torch

    from alize.models.checkpoint import Checkpoint

__all__ = ["EXPERTS", "mixtral_config_json", "upcycle"]

EXPERTS = 8
TOP_K = 2
SEED = 0
NOISE = 0.05  # of the weight's standard deviation
ROUTER_STD = 0.3  # of each weight: router logits are then some 1 apart
SHARD_BYTES = 500_000_000
PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def mixtral_config_json(window: int) -> str:
    """The text of config.json; `window` 0 is full attention."""
    named = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": window or None}
    experts = {"num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K, "output_router_logits": False}
    return json_text(dict(sorted({**CONFIG, **named, **experts}.items())))


def upcycle(dense: Path, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Writes the weights of the twin of the Mistral in DENSE into FOLDER; `progress` gets bytes done and in all.

    One shard is in memory at a time. numpy's Philox gives the same noise on every machine.
    """
    from safetensors.torch import save_file

    from alize.models.checkpoint import Checkpoint, read_tensors

    source = Checkpoint(dense, {}, read_tensors(dense))
    shards = list(_shards(source))
    total = sum(size for shard in shards for size in shard.values())
    weight_map: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for name, size in shard.items():
            tensors[name] = _make(source, name)
            done += size
            progress(done, total)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json_text(index), encoding="utf-8")


def _shards(source: "Checkpoint") -> Iterator[dict[str, int]]:
    """Tensor name -> bytes (bf16), of each shard, in the order of the layers."""
    shard: dict[str, int] = {}
    for name, size in _names(source):
        if shard and sum(shard.values()) + size > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = size
    yield shard


def _names(source: "Checkpoint") -> Iterator[tuple[str, int]]:
    for name, info in sorted(source.tensors.items(), key=lambda item: _order(item[0])):
        prefix, _, part = name.partition(".mlp.")
        if not part:
            yield name, info.size
            continue
        moe, part = f"{prefix}.block_sparse_moe", part.removesuffix(".weight")
        if part == "gate_proj":
            yield f"{moe}.gate.weight", 2 * EXPERTS * info.shape[1]
        yield from ((f"{moe}.experts.{e}.{PARTS[part]}.weight", info.size) for e in range(EXPERTS))


def _order(name: str) -> tuple[int, str]:
    fields = name.split(".")
    return (int(fields[2]) if fields[1] == "layers" else -1), name


def _make(source: "Checkpoint", name: str) -> "torch.Tensor":
    """A tensor of the twin: the dense model's own, an expert's noisy copy, or a random router."""
    import numpy as np
    import torch

    prefix, _, part = name.partition(".block_sparse_moe.")
    if not part:
        return source.tensor(name).clone()
    layer = int(prefix.rsplit(".", 1)[1])
    if part == "gate.weight":
        hidden = source.tensors[f"{prefix}.mlp.gate_proj.weight"].shape[1]
        noise = np.random.Generator(np.random.Philox(key=[SEED, layer << 16])).standard_normal((EXPERTS, hidden), np.float32)
        return torch.from_numpy(noise * np.float32(ROUTER_STD)).bfloat16()
    _, expert, short, _ = part.split(".")
    number = list(PARTS.values()).index(short) + 1
    dense = source.tensor(f"{prefix}.mlp.{list(PARTS)[number - 1]}.weight")
    key = [SEED, layer << 16 | int(expert) << 8 | number]
    noise = np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(dense.shape), np.float32)
    # rounded, because a sum of many numbers may differ from machine to machine in its last bits
    scale = np.float32(f"{NOISE * float(dense.double().std()):.6e}")
    return (dense.float() + torch.from_numpy(noise * scale)).bfloat16()
