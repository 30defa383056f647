"""Tiny random checkpoints of every kind of every family, written without transformers.

The weights are far from small (std 0.2 to 0.5): logits are spread, attention is peaked, and a wrong window, rotary base or
head visibly changes every logit.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

RUN_HERE = ("openvino", "onnxruntime")
"""The targets whose artifacts any machine runs; the others have tests of their own."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

YARN: dict[str, Any] = {  # so few original positions that every test goes beyond them
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 0.5,
    "beta_slow": 0.02,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}

KINDS: dict[str, dict[str, Any]] = {
    "v0.1": {"window": 6, "rope": "old"},
    "v0.2": {"window": 0, "rope": "old", "theta": 1e6},
    "nemo": {"head_size": 12, "hidden_size": 40, "theta": 1e6, "rope": "new"},
    "nemo-windowed": {"head_size": 6, "window": 5},
    "tied": {"tied": True, "window": 7, "shards": 1},
    "no-grouping": {"heads": 4, "kv_heads": 4, "window": 5},
    "one-kv-head": {"heads": 4, "kv_heads": 1, "shards": 3},
    "window-of-one": {"window": 1},
    "bfloat16": {"window": 6, "dtype": "bfloat16", "tied": True},
    "float16": {"dtype": "float16", "rope": "old"},
    "ministral": {"family": "ministral", "window": 5, "pattern": (0, 1)},
    "ministral-mostly-sliding": {"family": "ministral", "window": 4, "pattern": (1, 0, 1), "tied": True},
    "ministral-full": {"family": "ministral", "window": 6, "pattern": (0,)},
    "ministral3": {"family": "ministral3", "rope": YARN},
    "ministral3-windowed": {"family": "ministral3", "window": 6, "rope": YARN | {"truncate": False}, "tied": True},
    "ministral3-unequal-mscale": {"family": "ministral3", "rope": YARN | {"mscale_all_dim": 0.5}, "seed": 1},
    "mixtral": {"experts": 4, "window": 6},
    "mixtral-packed": {"experts": 8, "top_k": 3, "packed": True, "tied": True},
    "mixtral-one-of-many": {"experts": 16, "top_k": 1, "dtype": "bfloat16", "shards": 3},
}
"""One of each kind: keyword arguments of `tiny_checkpoint`."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def tiny_checkpoint(
    folder: Path,
    *,
    family: Literal["mistral", "ministral", "ministral3"] = "mistral",
    window: int = 0,
    pattern: tuple[int, ...] | None = None,
    tied: bool = False,
    layers: int = 3,
    heads: int = 4,
    kv_heads: int = 2,
    head_size: int | None = None,
    hidden_size: int = 32,
    intermediate_size: int = 56,
    vocab_size: int = 320,
    theta: float = 1e4,
    max_positions: int = 512,
    rope: Literal["old", "new"] | dict[str, Any] = "new",
    shards: int = 2,
    dtype: str = "float32",
    seed: int = 0,
    tokenizer: bool = False,
    experts: int = 0,
    top_k: int = 2,
    packed: bool = False,
    config: dict[str, Any] | None = None,
) -> Path:
    """Writes a Hugging Face folder and returns it. The same arguments give the same bytes.

    window 0 writes `sliding_window: null`; pattern repeats over the layers as `layer_types`, 1 = sliding; head_size None
    leaves `head_dim` out where a family derives it; rope chooses `rope_theta` (old) or `rope_parameters` (new, or these);
    shards 1 writes one model.safetensors; config overrides keys of config.json. tokenizer adds a byte-level tokenizer (259
    tokens) with a chat template. experts E makes a Mixtral of it, in the published layout or packed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = head_size or hidden_size // heads
    shapes = _shapes(layers, heads * size, kv_heads * size, hidden_size, intermediate_size, vocab_size, tied)
    if experts:
        shapes = _with_experts(shapes, experts, packed=packed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: _random(name, shape, generator).to(DTYPES[dtype]) for name, shape in shapes.items()}
    _save(folder, tensors, shards)
    written: dict[str, Any] = {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "sliding_window": window or None,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
        "use_cache": True,
        "transformers_version": "4.57.0",
    }
    default = {"rope_type": "default", "rope_theta": theta}
    written |= {"rope_theta": theta} if rope == "old" else {"rope_parameters": default if rope == "new" else rope}
    written |= {} if head_size is None and family == "mistral" else {"head_dim": size}
    if pattern is not None:
        written["layer_types"] = [
            "sliding_attention" if pattern[layer % len(pattern)] else "full_attention" for layer in range(layers)
        ]
    if experts:
        written |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
        written |= {"num_local_experts": experts, "num_experts_per_tok": top_k, "router_aux_loss_coef": 0.02}
    write_json(folder / "config.json", written | (config or {}))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Sorted keys, so that the bytes do not depend on the order of writing."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes keys of a checkpoint's config.json in place; ... (Ellipsis) removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    write_json(path, {key: value for key, value in config.items() if value is not ...})


def edit_tensor(folder: Path, name: str, tensor: Tensor) -> None:
    """Replaces (or adds to a single-file checkpoint) one tensor in place."""
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    file = json.loads(index.read_text())["weight_map"][name] if index.exists() else "model.safetensors"
    kept = {other: value.clone() for other, value in load_file(folder / file).items()}  # not a map of what is written over
    save_file(kept | {name: tensor}, folder / file, metadata={"format": "pt"})


def _shapes(
    layers: int, query: int, key: int, hidden: int, intermediate: int, vocab: int, tied: bool
) -> dict[str, tuple[int, ...]]:
    layer = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (key, hidden),
        "self_attn.v_proj.weight": (key, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (intermediate, hidden),
        "mlp.up_proj.weight": (intermediate, hidden),
        "mlp.down_proj.weight": (hidden, intermediate),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    return shapes if tied else shapes | {"lm_head.weight": (vocab, hidden)}


def _with_experts(shapes: dict[str, tuple[int, ...]], experts: int, *, packed: bool) -> dict[str, tuple[int, ...]]:
    """The same model with a router and E experts in place of each MLP."""
    replaced: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        prefix, _, part = name.partition(".mlp.")
        if not part:
            replaced[name] = shape
        elif packed and part.startswith("gate_proj"):
            replaced[f"{prefix}.mlp.gate.weight"] = (experts, shape[1])
            replaced[f"{prefix}.mlp.experts.gate_up_proj"] = (experts, 2 * shape[0], shape[1])
        elif packed and part.startswith("down_proj"):
            replaced[f"{prefix}.mlp.experts.down_proj"] = (experts, *shape)
        elif not packed:
            moe, number = f"{prefix}.block_sparse_moe", {"gate_proj": 1, "down_proj": 2, "up_proj": 3}[part.split(".")[0]]
            replaced[f"{moe}.gate.weight"] = (experts, shapes[f"{prefix}.mlp.gate_proj.weight"][1])
            replaced |= {f"{moe}.experts.{e}.w{number}.weight": shape for e in range(experts)}
    return replaced


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.2 * noise  # a norm's weight
    return noise * {"q_proj": 0.4, "k_proj": 0.4, "embed_tokens": 0.5}.get(name.split(".")[-2], 0.2)


def _save(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tokenizer(folder: Path) -> None:
    """Adds a byte-level tokenizer of 259 tokens with a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", tokens)
    write_json(
        folder / "tokenizer_config.json",
        tokens | {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, "chat_template": CHAT_TEMPLATE},
    )
