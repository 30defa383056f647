"""Makes every expert run once at load: OpenVINO packs a multiplication's weights when it first gets rows.

Without it the first token that chooses an expert pays for that expert's packing, in the middle of an answer. Which experts run
is the router's choice, so the graph gets an input that is added to the router's logits of every layer: large for the experts
whose turn it is, and 0 ever after, which adds nothing.
"""

import re
from typing import Any

import numpy as np

from alize.artifact.manifest import ModelInfo
from alize.errors import ArtifactError

__all__ = ["EXPERT_BIAS", "add_expert_bias", "biases", "no_bias", "warm_up"]

EXPERT_BIAS = "expert_bias"
_CHOSEN = 1e6  # far above what a router says, and finite: logits stay finite too
_LOGITS = re.compile(r"layers\.\d+\.router_logits")


def add_expert_bias(model: Any, info: ModelInfo) -> int:
    """Adds the input `expert_bias` float32 [E] to the router's logits of each layer, in place. Returns the layers changed.

    Raises ArtifactError for a graph that does not name them.
    """
    from openvino import Type
    from openvino import opset13 as ops

    logits = [value for node in model.get_ops() for value in node.outputs() if any(map(_LOGITS.fullmatch, value.get_names()))]
    if len(logits) != info.layers:
        raise ArtifactError(
            f"the graph names the router's logits of {len(logits)} layers, the manifest has {info.layers}: build it again"
        )
    bias = ops.parameter([info.experts], Type.f32, EXPERT_BIAS)
    bias.output(0).set_names({EXPERT_BIAS})
    for value in logits:
        readers = value.get_target_inputs()
        biased = ops.add(value, bias)
        for reader in readers:
            reader.replace_source_output(biased.output(0))
    model.add_parameters([bias])
    model.validate_nodes_and_infer_types()
    return len(logits)


def no_bias(info: ModelInfo) -> dict[str, Any]:
    """What every step feeds besides its tokens; nothing where there are no experts."""
    return {EXPERT_BIAS: np.zeros(info.experts, np.float32)} if info.experts else {}


def biases(info: ModelInfo) -> list[dict[str, Any]]:
    """What is fed instead, run after run, to run every expert once; nothing where there are none."""
    found = []
    for first in range(0, info.experts, max(info.experts_per_token, 1)):
        bias = np.zeros(info.experts, np.float32)
        bias[first : first + info.experts_per_token] = _CHOSEN
        found.append({EXPERT_BIAS: bias})
    return found


def warm_up(compiled: Any, info: ModelInfo) -> int:
    """Runs one token for each top_k experts, in a request that is thrown away. Returns the number of runs."""
    request = compiled.create_infer_request()
    turns = biases(info)
    for bias in turns:
        request.reset_state()
        request.infer(
            {
                "input_ids": np.full((1, 1), info.bos_token_id or 0, np.int64),
                "position_ids": np.zeros((1, 1), np.int64),
                "attention_mask": np.ones((1, 1), np.int64),
                "beam_idx": np.zeros(1, np.int32),
                "num_logits_to_keep": np.ones(1, np.int64),
            }
            | bias
        )
    return len(turns)
