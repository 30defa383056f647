"""LoRA adapters as peft writes them, with random factors, and what peft itself merges them to."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alize.models.checkpoint import Checkpoint, read_tensors
from tests.tiny import write_json

TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def make_adapter(base: Path, folder: Path, *, tree: bool = False, dtype: torch.dtype | None = None, **options: Any) -> Path:
    """Writes an adapter for the checkpoint in `base`: peft's LoraConfig(**options). dtype: what its factors are stored in.

    tree: on modules named like the checkpoint's tensors, as the experts of a Mixtral were in transformers 4.
    """
    import peft

    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(_model(base, tree=tree), peft.LoraConfig(**options))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.save_pretrained(folder)
    if dtype is not None:
        edit_tensors(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    return folder


def merged_by_peft(base: Path, folder: Path, *, tree: bool = False) -> dict[str, Tensor]:
    """The state dict of peft's merge_and_unload."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = peft.PeftModel.from_pretrained(_model(base, tree=tree), str(folder)).merge_and_unload()
    state: dict[str, Tensor] = merged.state_dict()
    return state


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """edit(tensors) changes them in place or returns others."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
    changed = edit(tensors)
    kept = changed if isinstance(changed, dict) else tensors
    save_file({name: tensor.clone() for name, tensor in kept.items()}, folder / TENSORS, metadata={"format": "pt"})


def edit_settings(folder: Path, **changes: Any) -> None:
    """Changes keys of adapter_config.json; ... (Ellipsis) removes one."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    write_json(folder / CONFIG, {key: value for key, value in config.items() if value is not ...})


def _model(base: Path, *, tree: bool) -> Any:
    if tree:
        return _tree(base)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype="auto")


def _tree(base: Path) -> nn.Module:
    """Modules that hold the checkpoint's tensors under their names: a Linear for each matrix, an Embedding for the first."""
    checkpoint, root = Checkpoint.open(base), nn.Module()
    for name, info in read_tensors(base).items():
        weight = nn.Parameter(checkpoint.view(info).clone())
        *path, last = name.removesuffix(".weight").split(".")
        place = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, _leaf(last, weight))
    return root


def _leaf(name: str, weight: nn.Parameter) -> nn.Module:
    if weight.dim() < 2:
        leaf = nn.Module()
    elif name == "embed_tokens":
        leaf = nn.Embedding(*weight.shape, device="meta")
    else:
        leaf = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    leaf.weight = weight
    return leaf
