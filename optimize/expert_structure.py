"""Which experts a compiled graph can reach, which ran and which the router chose: what makes a lowering sparse, by counters.

A graph is dense in disguise when an expert runs that no token chose: on padded rows, or with its answers weighted by 0. It
says the right thing and costs E/top_k times what it should, so logits cannot tell and clocks are not asked.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.errors import LoweringFailed
from alize.optimize.expert_nodes import APART

__all__ = ["PREFILL", "Experts", "Phase", "by_layer", "check_phases", "chosen_experts", "probe_token"]

PREFILL = 16
"""Tokens of the prefill that is looked at. All are the same token: then attention gives each the same (a mean of equal
values, whatever the positions), the router chooses top_k experts a layer, and any other that ran is conspicuous."""

Experts = Mapping[int, Mapping[str, set[int]]]  # layer -> part, of APART -> experts
_NAME = re.compile(rf"layers\.(\d+)\.experts\.(\d+)\.({'|'.join(APART)})")


@dataclass(frozen=True)
class Phase:
    """One run. chosen: layer -> experts that the router chose for any token; executed: what ran."""

    name: str
    tokens: int
    chosen: Mapping[int, set[int]]
    executed: Experts


def by_layer(names: Iterable[str], layers: int) -> dict[int, dict[str, set[int]]]:
    """Sorts the names of matrix multiplications; other names are left out."""
    found: dict[int, dict[str, set[int]]] = {layer: {part: set() for part in APART} for layer in range(layers)}
    for name in names:
        match = _NAME.fullmatch(name)
        if match and int(match[1]) < layers:
            found[int(match[1])][match[3]].add(int(match[2]))
    return found


def chosen_experts(chosen: Sequence[NDArray[Any]]) -> dict[int, set[int]]:
    """`layers.{i}.experts` of each layer -> layer -> experts."""
    return {layer: set(np.unique(experts).tolist()) for layer, experts in enumerate(chosen)}


def probe_token(info: ModelInfo) -> int:
    """The token that the runs consist of."""
    return info.bos_token_id or 0


def check_phases(phases: Sequence[Phase], reachable: Experts, info: ModelInfo) -> dict[str, Any]:
    """Asserts that every expert is there, that all that were chosen ran, and that nothing else did.

    Returns what the manifest's `structure` holds: counts of experts over all layers. Raises LoweringFailed naming layer, phase
    and experts.
    """
    everyone = set(range(info.experts))
    for layer in range(info.layers):
        for part, experts in reachable[layer].items():
            if experts != everyone:
                raise LoweringFailed(
                    f"layer {layer}: {_named(everyone - experts)} has no matrix multiplication of its own for {part} in the "
                    "compiled graph: experts are not apart"
                )
        for phase in phases:
            _check(phase, layer)
    return {
        "matmul_nodes": sum(len(experts) for parts in reachable.values() for experts in parts.values()),
        **{phase.name: _counts(phase, info) for phase in phases},
    }


def _check(phase: Phase, layer: int) -> None:
    chosen = phase.chosen[layer]
    for part, executed in phase.executed[layer].items():
        if executed - chosen:
            raise LoweringFailed(
                f"layer {layer}, {phase.name}: {_named(executed - chosen)} ran ({part}), which the router did not choose "
                f"(it chose {_named(chosen)}): dense in disguise"
            )
        if chosen - executed:
            raise LoweringFailed(
                f"layer {layer}, {phase.name}: {_named(chosen - executed)} did not run ({part}), which the router chose"
            )


def _counts(phase: Phase, info: ModelInfo) -> dict[str, int]:
    return {
        "tokens": phase.tokens,
        "experts_executed": sum(len(parts[APART[0]]) for parts in phase.executed.values()),
        "experts_reachable": info.layers * info.experts,
    }


def _named(experts: set[int]) -> str:
    return f"expert{'s' if len(experts) > 1 else ''} {', '.join(map(str, sorted(experts)))}"
