"""The torch back-end: our own definition in float32, whole model in memory. It is what the others are compared with.

It has the functions that every back-end has; `open` reads a checkpoint folder instead of an artifact.
"""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alize.artifact import Manifest, ModelInfo
from alize.errors import DeviceUnavailable
from alize.models.checkpoint import Checkpoint
from alize.models.mistral import Config, Model
from alize.models.registry import family_for

__all__ = ["TorchEngine", "TorchRunner", "available", "devices", "fingerprint", "model_info", "open"]


def available() -> str | None:
    """None: this module cannot be imported without torch."""
    return None


def devices() -> list[str]:
    """ "cpu", and "cuda:0", "cuda:1" ... where there are any."""
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def fingerprint(device: str) -> dict[str, str]:
    """What the numbers of this device may depend on."""
    unit = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    return {"backend": "torch", "device": device, "torch": torch.__version__, "machine": platform.machine(), "unit": unit}


def open(  # noqa: A001 - the name that every back-end gives it
    folder: Path,
    manifest: Manifest | None = None,  # noqa: ARG001 - a checkpoint has none
    device: str = "cpu",
    options: Mapping[str, str | int | bool] | None = None,  # noqa: ARG001
    taps: Sequence[str] = (),  # noqa: ARG001 - a `Reference` is what says what happens inside
) -> "TorchEngine":
    """Loads a checkpoint folder. Raises the SourceErrors of `Checkpoint.open` and `convert_weights`, DeviceUnavailable."""
    if device not in devices():
        raise DeviceUnavailable(f"torch has no device {device} here, only {', '.join(devices())}: choose one of these")
    return TorchEngine(Checkpoint.open(folder), device=device)


def model_info(config: Config) -> ModelInfo:
    """What a Session has to know of a model."""
    return ModelInfo(
        layers=config.num_layers,
        query_heads=config.num_heads,
        key_value_heads=config.num_kv_heads,
        head_size=config.head_size,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        windows=config.windows,
        max_positions=config.max_positions,
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
        experts=config.num_experts,
        experts_per_token=config.experts_per_token,
    )


class TorchEngine:
    """A model's weights in float32 on one device, shared by its runners."""

    def __init__(self, checkpoint: Checkpoint, *, device: str = "cpu") -> None:
        family = family_for(checkpoint.config)
        config = family.config.from_dict(checkpoint.config)
        weights = family.convert_weights(config, checkpoint)
        with torch.device("meta"):
            self.model = family.model(config)
        for weight in weights.values():
            for source in weight.sources:
                checkpoint.check_finite(source)
        state = {name: checkpoint.read(weight, torch.float32).to(device) for name, weight in weights.items()}
        self.model.load_state_dict(state, assign=True)
        self.info = model_info(config)
        self.device = device

    def runner(self, batch: int) -> "TorchRunner":
        """A fresh state for `batch` rows."""
        return TorchRunner(self.model, batch=batch, device=self.device)

    def close(self) -> None:
        """Releases the weights."""
        self.model = self.model.to("meta")


class TorchRunner:
    """Rows that know nothing of each other: each has its own cache and is run by itself, without padding."""

    def __init__(self, model: Model, *, batch: int, device: str = "cpu") -> None:
        self._model = model
        self._device = torch.device(device)
        config = model.config
        self._empty = torch.empty(1, config.num_kv_heads, 0, config.head_size, device=self._device)
        self._caches = self._fresh(batch)  # [row][layer] -> (key, value), [1,K,cached,D]

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        """See alize.runtimes.session.Runner."""
        batch, width = tokens.shape[0], keep or tokens.shape[1]
        logits = np.zeros((batch, width, self._model.config.vocab_size), np.float32)
        for row, length in enumerate(lengths.tolist()):
            if length == 0:
                continue
            kept = min(keep or length, length)
            result = self._append(row, tokens[row, :length], int(positions[row]), kept)
            if keep:
                logits[row, width - kept :] = result
            else:
                logits[row, :length] = result
        return logits

    def drop_last(self, n: int) -> None:
        """See alize.runtimes.session.Runner."""
        self._caches = [[_cut(pair, 0, pair[0].shape[2] - n) for pair in row] for row in self._caches]

    def evict(self, keep: int) -> None:
        """See alize.runtimes.session.Runner."""
        for row in self._caches:
            for index, window in enumerate(self._model.config.windows):
                if window:
                    cached = row[index][0].shape[2]
                    row[index] = _cut(row[index], max(0, cached - keep), cached)

    def cached(self) -> int:
        """See alize.runtimes.session.Runner."""
        windows = self._model.config.windows
        counted = [index for index, window in enumerate(windows) if window] or list(range(len(windows)))
        return max((row[index][0].shape[2] for row in self._caches for index in counted), default=0)

    def reset(self) -> None:
        """See alize.runtimes.session.Runner."""
        self._caches = self._fresh(len(self._caches))

    def close(self) -> None:
        """See alize.runtimes.session.Runner."""
        self._caches = []

    def _fresh(self, batch: int) -> list[list[tuple[Tensor, Tensor]]]:
        return [[(self._empty, self._empty)] * self._model.config.num_layers for _ in range(batch)]

    @torch.inference_mode()
    def _append(self, row: int, tokens: NDArray[np.int64], position: int, kept: int) -> NDArray[np.float32]:
        """Runs [S] tokens of one row; returns the last `kept` logits, float32 [kept,V]."""
        model, caches, count = self._model, self._caches[row], len(tokens)
        hidden = model.embed(torch.from_numpy(tokens).to(self._device)[None])
        angles = model.angles(torch.arange(position, position + count, device=self._device)[None])
        for index, layer in enumerate(model.layers):
            cached = caches[index][0].shape[2]  # evicted layers hold less than full-attention ones
            mask = torch.ones(1, cached + count, dtype=torch.int64, device=self._device)
            hidden, caches[index] = layer(hidden, angles, mask, caches[index])
        logits: NDArray[np.float32] = model.head(model.norm(hidden[:, -kept:]))[0].cpu().numpy()
        return logits


def _cut(pair: tuple[Tensor, Tensor], start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Cached positions start..stop-1, copied so that the rest is freed."""
    key, value = pair
    return key[:, :, start:stop].clone(), value[:, :, start:stop].clone()
