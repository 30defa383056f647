"""Hub models of tiny checkpoints, the logits that PyTorch gives for them, and inputs for both."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from alize.artifact.manifest import ModelInfo
from alize.export.hub import export_hub, save
from alize.models.checkpoint import Checkpoint, Weight
from alize.models.mistral import Config, Model
from alize.models.registry import family_for
from alize.models.session import model_info
from tests.tiny import tiny_checkpoint

TOLERANCE = 1e-4  # on float32 logits, whose std is above 1 for the tiny checkpoints
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Array = NDArray[Any]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint; what is made of it is made once."""

    checkpoint: Checkpoint

    @cached_property
    def config(self) -> Config:
        return family_for(self.checkpoint.config).config.from_dict(self.checkpoint.config)

    def info(self, *, windows: Sequence[int] | None = None) -> ModelInfo:
        """What the manifest says of the model; of so many layers, with other windows."""
        info = model_info(self.config)
        return info if windows is None else replace(info, windows=tuple(windows), layers=len(windows))

    @cached_property
    def saved(self) -> Path:
        """model.onnx of the exported hub, as `save` writes it."""
        path = self.checkpoint.folder / "hub" / "model.onnx"
        path.parent.mkdir()
        save(export_hub(self.checkpoint), path)
        return path

    def model(self, weights: str = "fp32") -> Model:
        """In float32; its matrices have been stored as `weights` before."""
        family = family_for(self.checkpoint.config)
        converted = family.convert_weights(self.config, self.checkpoint)
        with torch.device("meta"):
            model = family.model(self.config)
        tensors = {name: self.checkpoint.read(weight, torch.float32) for name, weight in converted.items()}
        tensors = {name: tensor.to(DTYPES[weights]).float() if tensor.dim() > 1 else tensor for name, tensor in tensors.items()}
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def tokens(self, batch: int, total: int, *, seed: int = 0) -> NDArray[np.int64]:
        return np.random.default_rng(seed).integers(0, self.config.vocab_size, (batch, total))

    def no_past(self, batch: int) -> Feeds:
        shape = (batch, self.config.num_kv_heads, 0, self.config.head_size)
        parts = [f"past_key_values.{i}.{part}" for i in range(self.config.num_layers) for part in ("key", "value")]
        return {part: np.zeros(shape, np.float32) for part in parts}


def make_tiny(folder: Path, **options: Any) -> Tiny:
    return Tiny(Checkpoint.open(tiny_checkpoint(folder, **options)))


def left_padded(padding: Sequence[int], total: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """attention_mask and position_ids [B,total]; positions count from 0 behind each row's padding."""
    mask = (np.arange(total) >= np.array(padding)[:, None]).astype(np.int64)
    return mask, np.maximum(mask.cumsum(1) - 1, 0)


def chunks(tokens: Array, mask: Array, positions: Array, sizes: Sequence[int]) -> list[Feeds]:
    """What to feed in each step, the past aside."""
    steps, start = [], 0
    for size in sizes:
        end = start + size
        part = slice(start, end)
        steps.append({"input_ids": tokens[:, part], "position_ids": positions[:, part], "attention_mask": mask[:, :end]})
        start = end
    assert start == tokens.shape[1]
    return steps


def torch_logits(model: Model, tokens: Array, mask: Array, positions: Array) -> Array:
    """[B,total,V] of one pass over everything."""
    batch = tokens.shape[0]
    empty = torch.empty(batch, model.config.num_kv_heads, 0, model.config.head_size)
    with torch.inference_mode():
        arguments = (torch.from_numpy(array) for array in (tokens, positions, mask))
        logits, _ = model(*arguments, [(empty, empty)] * model.config.num_layers)
    return np.asarray(logits.numpy())


def onnx_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """Unmodified onnxruntime with its defaults."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def onnx_logits(session: onnxruntime.InferenceSession, steps: Sequence[Feeds], past: Mapping[str, Array]) -> Array:
    """Logits of all steps side by side; each step's presents are the next one's past."""
    names = [output.name for output in session.get_outputs()]
    found = []
    for step in steps:
        results = dict(zip(names, session.run(names, {**step, **past}), strict=True))
        found.append(results.pop("logits"))
        past = {name.replace("present", "past_key_values"): value for name, value in results.items()}
    return np.concatenate(found, axis=1)


def nodes(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def checked(model: ir.Model, path: Path) -> onnx.ModelProto:
    """Writes the model, has it checked in full, and reads it back with its weights."""
    ir.save(model, path, external_data=f"{path.name}.data")
    onnx.checker.check_model(path, full_check=True)
    return onnx.load(path)


class Watch:
    """What `Checkpoint.read` gives away and how much of it is alive at a time; for models exported afterwards."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.given: list[weakref.ref[Tensor]] = []
        self.most = 0
        read = Checkpoint.read

        def watched(checkpoint: Checkpoint, weight: Weight, dtype: torch.dtype) -> Tensor:
            tensor = read(checkpoint, weight, dtype)
            self.given.append(weakref.ref(tensor))
            self.most = max(self.most, self.alive())
            return tensor

        patch.setattr(Checkpoint, "read", watched)

    def alive(self) -> int:
        return sum(reference() is not None for reference in self.given)
