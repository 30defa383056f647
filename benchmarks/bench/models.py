"""What is measured: checkpoints, and how finely their weights are rounded."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.make_checkpoint import write_checkpoint

__all__ = ["MODELS", "BenchModel", "chosen"]


@dataclass(frozen=True)
class BenchModel:
    """checkpoint: demo, twin, or a shape of make_checkpoint.py, cut to `layers`.   group: weights that share a scale, of int4.

    without: usual subjects that are left out.   also: others that are not.   usual: measured unless others are named.
    """

    name: str
    title: str
    checkpoint: str
    bits: int
    group: int = 0
    layers: int = 0
    without: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    usual: bool = True

    @property
    def random(self) -> bool:
        """Has random weights, and no tokenizer."""
        return self.layers > 0

    @property
    def weights(self) -> str:
        return f"int{self.bits}, " + (f"groups of {self.group}" if self.group else "a scale a row")

    def checkpoint_folder(self, work: Path) -> Path:
        suffix = f"-{self.layers}" if self.random else ""
        return work / "checkpoints" / f"{self.checkpoint}{suffix}"

    def make_checkpoint(self, work: Path) -> Path:
        """What is there is used as it is. Measuring needs no more than its config.json: the shards may be removed meanwhile."""
        folder = self.checkpoint_folder(work)
        if any(folder.glob("*.safetensors")):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if self.random:
            return write_checkpoint(self.checkpoint, folder, layers=self.layers)
        from alize.models.demo_checkpoint import make_demo_checkpoint

        return make_demo_checkpoint(folder, mixtral=self.checkpoint == "twin")

    def config(self, work: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.checkpoint_folder(work) / "config.json").read_text())
        return found


# mobius-onnx's way leads through float32: four bytes a weight on disk, and all of it in memory to be rounded
_LARGE = ("onnxruntime-genai, mobius-onnx",)
_OURS = ("openvino-genai, alize's artifact",)  # where optimum-intel may not have the memory for its own
_ALL = (
    BenchModel("demo-int8", "demo Mistral, 135M", "demo", 8),
    BenchModel("demo-int4", "demo Mistral, 135M", "demo", 4, 64),
    BenchModel("twin-int8", "its Mixtral twin, 690M, 8 experts", "twin", 8),
    BenchModel("twin-int4", "its Mixtral twin, 690M, 8 experts", "twin", 4, 64),
    BenchModel("mistral-7b-int4", "Mistral-7B-v0.3's shape, 8 layers of 32, random", "mistral-7b-v0.3", 4, 128, 8, _LARGE),
    BenchModel("mixtral-8x7b-int4", "Mixtral-8x7B's shape, 2 layers of 32, random", "mixtral-8x7b", 4, 128, 2, _LARGE, _OURS),
    BenchModel(
        "mistral-7b-whole-int4", "Mistral-7B-v0.3's shape, random", "mistral-7b-v0.3", 4, 128, 32, _LARGE, _OURS, usual=False
    ),
)
MODELS = {model.name: model for model in _ALL}


def chosen(names: Iterable[str]) -> list[BenchModel]:
    """Those named, by default the usual ones."""
    return [MODELS[name] for name in names] or [model for model in _ALL if model.usual]
