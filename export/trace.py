"""Traces a model definition into an ONNX graph without allocating one weight.

The module is built under FakeTensorMode and traced by torch.export with dynamic B, S and P; torch.onnx translates the ATen
operators and, by the table below, leaves four kinds of node whole: our own custom operators, RMSNormalization and
RotaryEmbedding. Those are operators of opset 23, which torch.onnx would only reach by a version conversion that inlines
every function; `alize.export.hub` raises the opset afterwards.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.onnx._internal.exporter import _core as exporter  # the recorder of the node being translated has no public name

from alize.errors import ExportFailed
from alize.models.registry import Family

__all__ = ["trace"]

# No opset conversion starts from here: torch.onnx translates to this opset and converts upward from it.
_TRANSLATION_OPSET = 18
# Sizes that the tracer may not take for constants: all different, none of them 0 or 1.
_EXAMPLE_BATCH, _EXAMPLE_NEW, _EXAMPLE_PAST = 2, 3, 5


def trace(family: Family, config: Any) -> ir.Model:
    """Returns the raw graph of `family.model(config)`: weights are initialisers without data, named as its parameters.

    Inputs input_ids and position_ids [B,S], attention_mask [B,P+S], then key and value [B,K,P,D] of each layer; outputs
    logits [B,S,V], then key and value [B,K,P+S,D] of each layer. Raises ExportFailed naming what could not be traced.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = family.model(config).eval()
        arguments, shapes = _example(config)
        try:
            program = torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise ExportFailed(f"torch.export could not trace {family.model_type}: {error}") from error
        with _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=_TRANSLATION_OPSET,
                optimize=False,
                verify=False,
                custom_translation_table=dict(_translations()),
            )
    if exported is None:
        raise ExportFailed(f"torch.onnx returned no program for {family.model_type}")
    return exported.model


def _example(config: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    batch, new, past = _EXAMPLE_BATCH, _EXAMPLE_NEW, _EXAMPLE_PAST
    input_ids = torch.zeros(batch, new, dtype=torch.int64)
    position_ids = torch.zeros(batch, new, dtype=torch.int64)
    attention_mask = torch.ones(batch, past + new, dtype=torch.int64)
    cache = torch.zeros(batch, config.num_kv_heads, past, config.head_size)
    caches = [(cache.clone(), cache.clone()) for _ in range(config.num_layers)]
    dynamic = torch.export.Dim.DYNAMIC
    both = {0: dynamic, 1: dynamic}
    pair = ({0: dynamic, 2: dynamic}, {0: dynamic, 2: dynamic})
    return (input_ids, position_ids, attention_mask, caches), (both, both, both, [pair] * config.num_layers)


def _opaque(op_type: str, inputs: Sequence[Any], attributes: dict[str, Any], *, domain: str = "", outputs: int = 1) -> Any:
    """Appends one node that torch.onnx doesn't look into and returns its outputs."""
    recorder = exporter.current_tracer
    if recorder is None:
        raise ExportFailed("torch.onnx translated an operator outside of an export: this torch version is not supported")
    node = ir.node(op_type, inputs, attributes=attributes, domain=domain, num_outputs=outputs)
    recorder.nodes.append(node)
    return node.outputs


def _attention(q: Any, k: Any, v: Any, past_k: Any, past_v: Any, mask: Any, window: int, scale: float) -> Any:
    attributes = {"window": window, "scale": scale}
    inputs = (q, k, v, past_k, past_v, mask)
    return _opaque("SlidingWindowAttention", inputs, attributes, domain="ai.alize", outputs=3)


def _rms_norm(x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:  # noqa: ARG001
    if eps is None:
        raise ExportFailed("rms_norm without an epsilon: alize's definitions always give one")
    return _opaque("RMSNormalization", (x, weight), {"axis": -1, "epsilon": eps})[0]


def _rotary(x: Any, cos: Any, sin: Any, position_ids: Any = None, **attributes: int) -> Any:
    if position_ids is not None or any(attributes.values()):
        raise ExportFailed("rotary_embedding with a table or attributes: alize's definitions use neither")
    return _opaque("RotaryEmbedding", (x, cos, sin), {"interleaved": 0})[0]


def _translations() -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
    yield torch.ops.alize.sliding_window_attention.default, _attention
    yield torch.ops.aten.rms_norm.default, _rms_norm
    yield torch.ops.onnx.RotaryEmbedding.opset23, _rotary


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx prints its progress and warns of torchvision: the command line has a progress of its own."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
