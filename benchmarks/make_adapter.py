"""Writes a random LoRA adapter for a checkpoint: factors of every linear layer of its attention and of its MLP.

    python -m benchmarks.make_adapter CHECKPOINT FOLDER [--rank 16]

from the repository's root, for benchmarks.build_memory ... --adapter FOLDER. Values are small: the merged model computes about
the same. Of a mixture of experts every expert has factors of its own.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from alize.models.checkpoint import Checkpoint
from alize.models.registry import single_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    write_adapter(options.checkpoint, options.folder, rank=options.rank)


def write_adapter(checkpoint: Path, folder: Path, *, rank: int) -> None:
    """Modules are named as the checkpoint's tensors: its experts have to be in the published layout."""
    generator = torch.Generator().manual_seed(0)
    tensors, modules = {}, set[str]()
    for weight in single_weights(Checkpoint.open(checkpoint)).values():
        module = weight.sources[0].removesuffix(".weight")
        if len(weight.shape) != 2 or not module.endswith(("_proj", ".w1", ".w2", ".w3")):
            continue
        outputs, inputs = weight.shape
        modules.add(module.rsplit(".", 1)[-1])
        for part, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            values = torch.randn(shape, generator=generator) * 0.01
            tensors[f"base_model.model.{module}.lora_{part}.weight"] = values.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
