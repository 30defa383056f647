"""OpenVINO on the CPU: the stateful graph, one infer request a session.

The cache is the request's state [B,K,slots,D], rows aligned on the right. A step of unequal lengths appends the chunk as it
comes, padded on the right; causality hides the padding from every real token. Afterwards each row is moved right over its
padding, so that the slots of a row are again: padding, then its tokens without a gap.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import Manifest, ModelInfo
from alize.errors import ArtifactError, BackendUnavailable

__all__ = ["MODEL_FILE", "OpenVinoEngine", "OpenVinoRunner", "available", "compile_properties", "devices", "fingerprint", "open"]

MODEL_FILE = "openvino_model.xml"


def available() -> str | None:
    """None when openvino can be imported, else why not."""
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


def devices() -> list[str]:
    """The devices of this machine that artifacts can name."""
    import openvino

    return [device.lower() for device in openvino.Core().available_devices if device == "CPU"]


def fingerprint(device: str) -> dict[str, str]:
    """What tells this device from another: the engine's version and the processor."""
    import openvino

    from alize.runtimes.processor import processor_name

    return {"backend": "openvino", "version": openvino.__version__, "device": device, "name": processor_name()}


def compile_properties(options: Mapping[str, str | int | bool]) -> dict[str, str | int]:
    """OpenVINO's names for a configuration's options.

    accuracy (bool): float32 in everything, no dynamic quantisation.   inference_precision, kv_cache_precision: as OpenVINO
    spells them (f32, f16, bf16, u8).   dynamic_quantization_group: how many activations share a scale where they are rounded
    to 8 bits for a product with integer weights (0 = they are not rounded).   threads (0 = the engine's choice).
    """
    properties: dict[str, str | int] = {}
    if options.get("accuracy"):
        properties |= {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    names = {"inference_precision": "INFERENCE_PRECISION_HINT", "kv_cache_precision": "KV_CACHE_PRECISION"}
    properties |= {engine: str(options[name]) for name, engine in names.items() if name in options}
    if "dynamic_quantization_group" in options:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = int(options["dynamic_quantization_group"])
    if options.get("threads"):
        properties["INFERENCE_NUM_THREADS"] = int(options["threads"])
    return properties


def open(  # noqa: A001 - the name that every back-end module has
    folder: Path, manifest: Manifest, device: str, options: Mapping[str, str | int | bool]
) -> "OpenVinoEngine":
    """Compile the graph for the device. Options: see `compile_properties`. Raises ArtifactError, BackendUnavailable."""
    why = available()
    if why is not None:
        raise BackendUnavailable(f"openvino cannot be imported ({why}): pip install 'alize[openvino]'")
    import openvino

    core = openvino.Core()
    try:
        model = core.read_model(folder / MODEL_FILE)
        _slice_before_head(model)
        compiled = core.compile_model(model, device.upper(), compile_properties(options))
    except RuntimeError as error:
        raise ArtifactError(f"{folder / MODEL_FILE}: openvino {openvino.__version__} cannot compile it: {error}") from error
    return OpenVinoEngine(compiled, manifest.model)


def _slice_before_head(model: Any) -> None:
    """Adds the input `num_logits_to_keep` int64 [1]: the head computes the last so many positions only (0 = all)."""
    from openvino import Type
    from openvino import opset13 as ops

    head = model.output("logits").get_node().input_value(0).get_node()
    keep = ops.parameter([1], Type.i64, "num_logits_to_keep")
    keep.output(0).get_tensor().add_names({"num_logits_to_keep"})
    last = np.array([np.iinfo(np.int64).max], np.int64)
    one = np.array([1], np.int64)
    cut = ops.slice(head.input_value(0), ops.negative(keep), ops.constant(last), ops.constant(one), ops.constant(one))
    head.input(0).replace_source_output(cut.output(0))
    model.add_parameters([keep])
    model.validate_nodes_and_infer_types()


class OpenVinoEngine:
    """One compiled model; each runner is an infer request with a state of its own."""

    def __init__(self, compiled: Any, info: ModelInfo) -> None:
        self.compiled = compiled
        self.info = info

    def runner(self, batch: int) -> "OpenVinoRunner":
        return OpenVinoRunner(self.compiled.create_infer_request(), self.info, batch)

    def close(self) -> None:
        self.compiled = None


class OpenVinoRunner:
    """The state of B rows: `slots` cached positions, of which the last `filled[b]` are row b's tokens."""

    def __init__(self, request: Any, info: ModelInfo, batch: int) -> None:
        self._request = request
        self._info = info
        self._filled = np.zeros(batch, np.int64)
        self._slots = 0
        self._rows = np.arange(batch, dtype=np.int32)

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        new = tokens.shape[1]
        first = max(int(lengths.min()) - keep, 0) if keep else 0  # the first position that some row wants logits of
        logits = self._infer(tokens, lengths, positions, new - first)
        self._filled += lengths
        self._slots += new
        padding = new - lengths
        if padding.any():
            self._align(padding)
        if not keep:
            return _blank(logits, lengths)
        if not padding.any():
            return logits
        last = np.maximum(lengths[:, None] - keep + np.arange(keep) - first, 0)  # what a short row lacks is never read
        return np.take_along_axis(logits, last[:, :, None], axis=1)

    def _infer(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], count: int
    ) -> NDArray[np.float32]:
        new = tokens.shape[1]
        past = np.arange(self._slots) >= (self._slots - self._filled)[:, None]
        chunk = np.arange(new) < lengths[:, None]
        feeds = {
            "input_ids": tokens,
            "position_ids": positions[:, None] + np.arange(new, dtype=np.int64),
            "attention_mask": np.concatenate([past, chunk], axis=1).astype(np.int64),
            "beam_idx": self._rows,
            "num_logits_to_keep": np.array([count], np.int64),
        }
        result = self._request.infer(feeds, share_inputs=True, share_outputs=True)
        return np.array(result["logits"])  # a copy: the request writes its next output to the same place

    def _align(self, padding: NDArray[np.int64]) -> None:
        """Moves each row right over its padding and drops the slots that are padding in every row."""
        needed = int(self._filled.max())

        def moved(cache: NDArray[Any]) -> NDArray[Any]:
            aligned = np.zeros((*cache.shape[:2], needed, cache.shape[3]), cache.dtype)
            for b, (filled, skip) in enumerate(zip(self._filled.tolist(), padding.tolist(), strict=True)):
                end = cache.shape[2] - skip
                aligned[b, :, needed - filled :] = cache[b, :, end - filled : end]
            return aligned

        self._edit(moved)
        self._slots = needed

    def drop_last(self, n: int) -> None:
        self._filled -= n
        self._slots -= n
        self._edit(lambda cache: cache[:, :, : self._slots])

    def evict(self, keep: int) -> None:
        """A model that mixes windows and full attention keeps all it has: its layers share one attention mask."""
        if 0 in self._info.windows or self._slots <= keep:
            return
        self._slots = keep
        self._filled = np.minimum(self._filled, keep)
        self._edit(lambda cache: cache[:, :, cache.shape[2] - keep :])

    def _edit(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Rewrites every layer's keys and values. Exact for f32 and f16 caches, the only ones a configuration names."""
        import openvino

        for variable in self._request.query_state():
            variable.state = openvino.Tensor(np.ascontiguousarray(change(variable.state.data)))

    def cached(self) -> int:
        return int(self._filled.max())

    def reset(self) -> None:
        self._filled[:] = 0
        self._slots = 0
        self._request.reset_state()

    def close(self) -> None:
        self._request = None


def _blank(logits: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """0 behind each row's last token."""
    for b, count in enumerate(lengths.tolist()):
        logits[b, count:] = 0
    return logits
