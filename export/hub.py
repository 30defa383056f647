"""The hub model: what every lowering starts from, and a complete ONNX model of its own.

Opset 23, nodes of domain `ai.alize` with function bodies in standard operators, initialisers that stay in the checkpoint's
shards: a few MB in memory whatever the model's size, until something streams it out.
"""

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from alize.errors import ExportFailed
from alize.export import tidy
from alize.export.functions import DOMAIN, OPSET, VERSION, function_bodies
from alize.export.trace import trace
from alize.export.weights import attach_weights
from alize.models.checkpoint import Checkpoint
from alize.models.registry import family_for

__all__ = ["PASSES", "export_graph", "export_hub", "save"]

PASSES = (tidy.name_interface, tidy.name_layers, tidy.slice_before_head)


def export_hub(checkpoint: Checkpoint) -> ir.Model:
    """Traces the checkpoint's model and attaches its weights. Raises UnsupportedModel, CorruptCheckpoint, ExportFailed."""
    family = family_for(checkpoint.config)
    config = family.config.from_dict(checkpoint.config)
    weights = family.convert_weights(config, checkpoint)
    model = export_graph(checkpoint.config)
    attach_weights(model, checkpoint, weights)
    return model


def export_graph(config: dict[str, object]) -> ir.Model:
    """The hub graph of a config.json, weights without data: shapes and operators only."""
    family = family_for(config)
    model = trace(family, family.config.from_dict(config))
    for step in PASSES:
        step(model)
    _declare(model)
    return model


def _declare(model: ir.Model) -> None:
    """Says which operators the graph is written in, and attaches the bodies of those that are ours."""
    model.opset_imports.update({"": OPSET, DOMAIN: VERSION})
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for function in function_bodies():
        if function.name in used:
            model.functions[function.identifier()] = function
    model.graph.name = "alize"
    model.producer_name = "alize"  # without a version: the same graph has the same bytes
    common.NameFixPass()(model)


def save(model: ir.Model, path: Path) -> None:
    """Writes PATH and PATH.data, one weight in memory at a time; checks the result with onnx.checker. Raises ExportFailed.

    The model keeps its lazy tensors: it can be lowered, or saved again, afterwards.
    """
    ir.save(model, path, external_data=f"{path.name}.data")
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportFailed(f"{path.name} is not valid ONNX: {error}") from error
