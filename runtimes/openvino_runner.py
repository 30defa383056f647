"""OpenVINO on a CPU or an Intel GPU: how an artifact is compiled, and the stateful graph, one infer request a session.

With `attention: paged` the graph is compiled in its paged form instead: see openvino_paged.py.

The cache is the request's state [B,K,slots,D], rows aligned on the right. A step of unequal lengths appends the chunk as it
comes, padded on the right; causality hides the padding from every real token. Afterwards each row is moved right over its
padding, so that the slots of a row are again: padding, then its tokens without a gap. See `Caches`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import Manifest, ModelInfo
from alize.errors import ArtifactError, BackendUnavailable
from alize.runtimes.openvino_blob import (
    NOT_KEPT,
    Blob,
    blob_of,
    export,
    open_blob,
    plain,
    read_blob,
    weights_left,
    write_blob,
)
from alize.runtimes.openvino_import import import_openvino
from alize.runtimes.openvino_integer_attention import use_attention
from alize.runtimes.openvino_kernels import ROUNDED_TOKENS, use_kernels
from alize.runtimes.openvino_paged import PagedEngine, page
from alize.runtimes.openvino_states import Caches
from alize.runtimes.openvino_warm_up import add_expert_bias, no_bias, warm_up
from alize.runtimes.taps import Taps

__all__ = ["MODEL_FILE", "OpenVinoEngine", "OpenVinoRunner", "available", "compile_properties", "devices", "fingerprint", "open"]

_log = logging.getLogger("alize.openvino")

MODEL_FILE = "openvino_model.xml"


def available() -> str | None:
    """None when openvino can be imported, else why not."""
    try:
        import_openvino()
    except ImportError as error:
        return str(error)
    return None


def devices() -> list[str]:
    """The devices of this machine that artifacts can name."""
    import openvino

    return [device.lower() for device in openvino.Core().available_devices if device.split(".")[0] in ("CPU", "GPU")]


def fingerprint(device: str) -> dict[str, str]:
    """What tells this device from another: the engine's version and the processor, or the graphics unit with its driver."""
    import openvino

    from alize.runtimes.processor import processor_name

    name = processor_name()
    if device != "cpu":
        name = str(openvino.Core().get_property(device.upper(), "FULL_DEVICE_NAME"))
    return {"backend": "openvino", "version": openvino.__version__, "device": device, "name": name}


def compile_properties(options: Mapping[str, str | int | bool]) -> dict[str, str | int]:
    """OpenVINO's names for a configuration's options.

    accuracy (bool): float32 in everything, no dynamic quantisation.   inference_precision, kv_cache_precision: as OpenVINO
    spells them (f32, f16, bf16, u8).   dynamic_quantization_group: how many activations share a scale where they are rounded
    to 8 bits for a product with integer weights (0 = they are not rounded).   threads (0 = the engine's choice).
    `attention` (stateful or paged) and `kernels` (engine or alize: whose products with integer weights) are no options of the
    engine: they decide which graph is compiled.
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
    folder: Path, manifest: Manifest, device: str, options: Mapping[str, str | int | bool], taps: Sequence[str] = ()
) -> "OpenVinoEngine | PagedEngine":
    """Compile the graph for the device, and run every expert once. Options: see `compile_properties`. Raises ArtifactError,
    BackendUnavailable."""
    why = available()
    if why is not None:
        raise BackendUnavailable(f"openvino cannot be imported ({why}): pip install 'alize[openvino]'")
    import openvino

    core, info = openvino.Core(), manifest.model
    paged = options.get("attention") == "paged"
    properties = compile_properties(options)
    blob = None if taps else blob_of(folder, manifest, fingerprint(device), options)
    content = None if blob is None else read_blob(blob)
    kept = _kept(core, blob, content, info, properties) if blob is not None and content else None
    if kept is not None:
        return kept
    try:
        model = core.read_model(folder / MODEL_FILE)
        (page(model, info) if paged else _slice_before_head(model))
        attention = use_attention(model, info, options) if paged else None
        read = use_kernels(model, options)
        if info.experts:
            add_expert_bias(model, info)
        model.add_outputs(list(taps))
        if content == NOT_KEPT or weights_left(model):
            blob = None
        compiled = core.compile_model(model, device.upper(), properties if blob is None else plain(properties))
        engine = (
            PagedEngine(compiled, info, taps, read_in_place=read, attention=attention)
            if paged
            else OpenVinoEngine(compiled, info, taps, read_in_place=read)
        )
        engine.warm_up()
        if isinstance(engine, PagedEngine) and blob is not None:
            engine.keep = lambda: _keep(core, blob, engine, properties)
    except RuntimeError as error:
        raise ArtifactError(f"{folder / MODEL_FILE}: openvino {openvino.__version__} cannot compile it: {error}") from error
    return engine


def _kept(core: Any, blob: Blob, content: bytes, info: ModelInfo, properties: Mapping[str, Any]) -> PagedEngine | None:
    """What an earlier process has compiled, None where the engine refuses it."""
    try:
        compiled, read, attention = open_blob(core, blob, content, info, properties)
    except RuntimeError as error:
        _log.debug("%s cannot be opened (%s): compiled anew", blob.path, error)
        return None
    engine = PagedEngine(compiled, info, read_in_place=read, attention=attention)
    if info.experts:
        engine.warm_up()  # the kernels have nothing to pack, a router's own matrix may
    return engine


def _keep(core: Any, blob: Blob, engine: PagedEngine, properties: Mapping[str, Any]) -> None:
    """Lets later processes open what was compiled here, if that gives the same bits; if not, they shall not try again."""
    try:
        content = export(engine.compiled, blob, engine.info)
        compiled, read, attention = open_blob(core, blob, content, engine.info, properties)
        twin = PagedEngine(compiled, engine.info, read_in_place=read, attention=attention)
        same = all(np.array_equal(mine, right) for mine, right in zip(_trial(twin), _trial(engine), strict=True))
        twin.close()
    except (RuntimeError, LookupError) as error:
        _log.debug("%s cannot be kept: %s", blob.path, error)
        same = False
    write_blob(blob, content if same else NOT_KEPT)


def _trial(engine: PagedEngine) -> list[NDArray[np.float32]]:
    """Logits of tokens that come many at once, few at once and alone."""
    runner, found, position = engine.runner(1), [], 0
    for count in (ROUNDED_TOKENS + 8, 8, 1):
        tokens = (np.arange(position, position + count) * 7 + 11)[None] % engine.info.vocab_size
        found.append(runner.step(tokens, np.array([count]), np.array([position]), 1))
        position += count
    runner.close()
    return found


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

    def __init__(self, compiled: Any, info: ModelInfo, taps: Sequence[str] = (), read_in_place: Sequence[Any] = ()) -> None:
        """read_in_place: constants of the graph that kernels read by their address."""
        self.compiled = compiled
        self.info = info
        self._read_in_place = read_in_place
        self._taps = taps

    def warm_up(self) -> None:
        """Runs every expert once."""
        if self.info.experts:
            warm_up(self.compiled, self.info)

    def runner(self, batch: int) -> "OpenVinoRunner":
        return OpenVinoRunner(self.compiled.create_infer_request(), self.info, batch, self._taps, self._read_in_place)

    def close(self) -> None:
        self.compiled = None


class OpenVinoRunner:
    """The state of B rows on one infer request."""

    def __init__(
        self, request: Any, info: ModelInfo, batch: int, taps: Sequence[str] = (), read_in_place: Sequence[Any] = ()
    ) -> None:
        """read_in_place: see OpenVinoEngine; the request runs on when that is closed."""
        self.taps = Taps(taps, batch)
        self._read_in_place = read_in_place
        self._request = request
        self._caches = Caches(request.query_state(), info.windows, batch)
        self._fixed = {"beam_idx": np.arange(batch, dtype=np.int32)} | no_bias(info)

    def step(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], keep: int
    ) -> NDArray[np.float32]:
        new = tokens.shape[1]
        first = max(int(lengths.min()) - keep, 0) if keep else 0  # the first position that some row wants logits of
        logits = self._infer(tokens, lengths, positions, new - first)
        self._caches.append(new, lengths)
        if not keep:
            return _blank(logits, lengths)
        if lengths.min() == new:
            return logits
        last = np.maximum(lengths[:, None] - keep + np.arange(keep) - first, 0)  # what a short row lacks is never read
        return np.take_along_axis(logits, last[:, :, None], axis=1)

    def _infer(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64], count: int
    ) -> NDArray[np.float32]:
        feeds = self._feeds(tokens, lengths, positions) | {"num_logits_to_keep": np.array([count], np.int64)}
        return self._ask(feeds, "logits", lengths)

    def _feeds(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        new = tokens.shape[1]
        cache = self._caches.longest
        past = np.arange(cache.slots) >= (cache.slots - cache.filled)[:, None]
        chunk = np.arange(new) < lengths[:, None]
        return {
            "input_ids": tokens,
            "position_ids": positions[:, None] + np.arange(new, dtype=np.int64),
            "attention_mask": np.concatenate([past, chunk], axis=1).astype(np.int64),
        } | self._fixed

    def _ask(self, feeds: dict[str, NDArray[Any]], output: str, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        result = self._request.infer(feeds, share_inputs=True, share_outputs=True)
        if self.taps.names:
            self.taps.add([np.asarray(result[name]) for name in self.taps.names], lengths)
        return np.array(result[output])  # a copy: the request writes its next output to the same place

    def drop_last(self, n: int) -> None:
        self._caches.drop_last(n)

    def evict(self, keep: int) -> None:
        self._caches.evict(keep)

    def cached(self) -> int:
        return self._caches.cached()

    def reset(self) -> None:
        self._caches.clear()
        self._request.reset_state()

    def close(self) -> None:
        del self._caches, self._request


def _blank(logits: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """0 behind each row's last token."""
    for b, count in enumerate(lengths.tolist()):
        logits[b, count:] = 0
    return logits
