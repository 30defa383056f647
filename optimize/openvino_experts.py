"""Which experts OpenVINO's CPU plugin ran, from its per-node counters."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.errors import LoweringFailed
from alize.optimize.expert_nodes import PARTS
from alize.optimize.expert_structure import PREFILL, Experts, Phase, by_layer, chosen_experts, probe_token
from alize.optimize.openvino_slices import HIDDEN

__all__ = ["Streams", "check_tiled", "executed_names", "expert_outputs", "joined", "reachable_experts", "run_phases"]

_MULTIPLIES = ("FullyConnected", "MatMul")


def expert_outputs(info: ModelInfo) -> list[str]:
    """The tensors that say which experts each layer's router chose."""
    return [f"layers.{layer}.experts" for layer in range(info.layers)] if info.experts else []


def reachable_experts(kinds: dict[str, str], layers: int) -> Experts:
    """kinds: what became of each node of the IR in the compiled graph."""
    return by_layer((name for name, kind in kinds.items() if kind in _MULTIPLIES), layers)


def check_tiled(kinds: dict[str, str], info: ModelInfo) -> dict[str, Any]:
    """Asserts that each layer's three multiplications became GatherMatmul, which reads the weights of the chosen experts only.

    Counters cannot look into one; but where the pattern is not recognised each of them is a MatMul of all experts with all
    tokens. Returns what the manifest's `structure` holds. Raises LoweringFailed naming the layer.
    """
    for layer in range(info.layers):
        found = {part: kinds.get(f"layers.{layer}.experts.{part}", "nothing of that name") for part in PARTS}
        if set(found.values()) != {"GatherMatmul"}:
            became = ", ".join(f"{part} {kind}" for part, kind in found.items())
            raise LoweringFailed(f"layer {layer}: the experts were not fused to GatherMatmul ({became}): dense in disguise")
    return {"gather_matmul_nodes": len(PARTS) * info.layers, "experts_reachable": info.layers * info.experts}


Streams = dict[str, NDArray[np.float32]]
"""Phase -> the residual stream [1,S,M] that one slice of layers hands to the next."""


def joined(phases: Sequence[Phase], others: Sequence[Phase]) -> list[Phase]:
    """The same phases of other layers put together."""
    return [
        replace(one, chosen={**one.chosen, **other.chosen}, executed={**one.executed, **other.executed})
        for one, other in zip(phases or others, others, strict=True)
    ]


def run_phases(
    compiled: Any, info: ModelInfo, *, first: int = 0, stop: int | None = None, streams: Streams | None = None
) -> list[Phase]:
    """A prefill and a decode step after it. compiled: with counters and `expert_outputs`, and never run before.

    Counters only grow, so the prefill's are exact, while of an expert that already ran in the prefill they do not say whether
    it ran again: the decode step is taken to have run such an expert if its router chose it, and not to have otherwise. One
    and the same token in both keeps the experts that this leaves out few.

    first, stop: the layers that `compiled` has; streams: what the layers before gave, replaced by what these give.
    """
    layers = range(first, info.layers if stop is None else stop)
    request = compiled.create_infer_request()
    phases: list[Phase] = []
    ran: set[str] = set()
    for name, feeds in _runs(info):
        result = request.infer(feeds | ({HIDDEN: streams[name]} if streams and first else {}))
        if streams is not None:
            streams[name] = np.array(result[0])
        found = chosen_experts([np.array(result[expert_outputs(info)[layer]]) for layer in layers])
        chosen = {layer: found[index] for index, layer in enumerate(layers)}
        before, ran = ran, executed_names(request)
        repeated = by_layer(before, info.layers)
        executed = {
            layer: {part: (experts - repeated[layer][part]) | (experts & chosen[layer]) for part, experts in parts.items()}
            for layer, parts in by_layer(ran, info.layers).items()
            if layer in chosen
        }
        phases.append(Phase(name, feeds["input_ids"].shape[1], chosen, executed))
    return phases


def executed_names(request: Any) -> set[str]:
    """The nodes that have run since the model was compiled.

    The engine picks a kernel for a multiplication when it gets rows for the first time and skips it as long as it gets none.
    So the kernel is what to look at: "undef" until then. `status` says EXECUTED of a skipped node too when the skipping itself
    took a microsecond.
    """
    return {entry.node_name for entry in request.profiling_info if not entry.exec_type.startswith("undef")}


def _runs(info: ModelInfo) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, start, stop in (("prefill", 0, PREFILL), ("decode", PREFILL, PREFILL + 1)):
        yield (
            name,
            {
                "input_ids": np.full((1, stop - start), probe_token(info), np.int64),
                "position_ids": np.arange(start, stop, dtype=np.int64)[None],
                "attention_mask": np.ones((1, stop), np.int64),
                "beam_idx": np.zeros(1, np.int32),
            },
        )
