"""Which weights an artifact holds as integers, and in what form. Nothing is computed here; `round_to_integers` does that.

Every matrix that is multiplied with is rounded in groups along its input axis, the axis that the product sums over. Tables
that tokens choose rows of (embedding and head, tied or not) are int8 with one scale a row, whatever was asked for: they weigh
little in a large model and a lot in what it says. Routers and vectors (norms) stay in float32.

A mix keeps most matrices in 4 bits and some, its wide units, in 8: `alize.mixing` says which. A unit is what has to have one form
on every target: a matrix, of a mixture of experts the gates and ups of all experts of a layer, or their downs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alize.errors import UsageError

__all__ = ["CHANNEL", "DEFAULT_BUDGET", "DEFAULT_GROUPS", "GROUPS", "MIXED", "Form", "Quantisation", "unit_of"]

CHANNEL = "channel"
GROUPS = (128, 64, 32)
MIXED = "mixed"
DEFAULT_GROUPS = {"int8": CHANNEL, "int4": "128", MIXED: "128"}
"""int8 loses next to nothing with one scale a row; int4 needs groups, and so does what a mix keeps in int4."""
DEFAULT_BUDGET = 5.0
"""Bits a weight of a mix."""

_NAME = re.compile(r"(?:(int4|int8)|mixed(?:-b(\d+(?:\.\d+)?))?)(?:-(?:g(\d+)|(channel)))?(-asym)?")
_UNIT = re.compile(r"model\.(layers\.\d+)\.(?:self_attn|mlp)\.(?:(experts\.)(?:\d+\.)?)?(\w+_proj)(?:\.weight)?")
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_ROUTER = re.compile(r".*\.gate\.weight")  # a router; an MLP's gate is called gate_proj


@dataclass(frozen=True)
class Form:
    """How one matrix [out,in] is stored: `bits` a value, one scale for each `group` values along the input axis.

    symmetric: the integers are signed and 0 stands for 0; else they are unsigned and every group has a zero point.
    """

    bits: int
    group: int
    symmetric: bool = True

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the largest integer."""
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.symmetric else (0, 2**self.bits - 1)

    def stored_bytes(self, shape: Sequence[int]) -> int:
        """Of a weight [...,out,in]: integers, scales and zero points."""
        count = math.prod(shape)
        groups = count // self.group
        return (count + (0 if self.symmetric else groups)) * self.bits // 8 + 2 * groups

    def describe(self, size: int) -> str:
        """int4 g64 asymmetric, for a matrix of that many inputs."""
        group = CHANNEL if self.group == size else f"g{self.group}"
        return f"int{self.bits} {group}" + ("" if self.symmetric else " asymmetric")


def unit_of(name: str) -> str | None:
    """The unit of a mix that a layer's matrix, or a stack of several, is part of: layers.3.down_proj, of experts
    layers.3.experts.gate_up_proj. None for what a mix does not choose the form of."""
    match = _UNIT.fullmatch(name)
    if match is None:
        return None
    layer, experts, part = match.groups(default="")
    return f"{layer}.{experts}{'gate_up_proj' if experts and part in ('gate_proj', 'up_proj') else part}"


@dataclass(frozen=True)
class Quantisation:
    """What was asked for. `group` 0: one scale a row.

    budget: of a mix, bits a weight of the layers' matrices, scales and zero points counted; else 0. `bits` and `group` are then
    those of what is not wide.   wide: the units of a mix that are in int8, one scale a row, as far as they are decided yet.
    """

    bits: int
    group: int
    symmetric: bool = True
    budget: float = 0.0
    wide: frozenset[str] = frozenset()

    @staticmethod
    def parse(weights: str, structure: Mapping[str, Any] | None = None) -> "Quantisation | None":
        """int4, int8-channel, int4-g64, int4-g64-asym, mixed-b5-g64 ...; None for any other name (of a float type).

        structure: of the manifest, which has the wide units of a mix.
        """
        match = _NAME.fullmatch(weights)
        if match is None:
            return None
        kind, budget, group, channel, asymmetric = match.groups()
        mixed = 0.0 if kind else float(budget or DEFAULT_BUDGET)
        parts = (structure or {}).get(MIXED, {}).get("int8", {})
        wide = frozenset(f"layers.{layer}.{part}" for part, layers in parts.items() for layer in layers)
        chosen = Quantisation(int(kind[3:]) if kind else 4, 0, asymmetric is None, mixed, wide)
        return chosen.grouped(group or channel or DEFAULT_GROUPS[chosen.kind])

    @property
    def kind(self) -> str:
        """int4, int8 or mixed."""
        return MIXED if self.budget else f"int{self.bits}"

    def grouped(self, group: str) -> "Quantisation":
        """The same with groups of another size ("channel": none). Raises UsageError."""
        sizes = {CHANNEL: 0} | {str(size): size for size in GROUPS}
        if group not in sizes:
            raise UsageError(f"--group-size {group} is unknown: choose one of {', '.join(map(str, GROUPS))} and {CHANNEL}")
        return replace(self, group=sizes[group])

    def __str__(self) -> str:
        """What `parse` reads, in one spelling."""
        group = f"g{self.group}" if self.group else CHANNEL
        budget = f"-b{self.budget:g}" if self.budget else ""
        return f"{self.kind}{budget}-{group}" + ("" if self.symmetric else "-asym")

    @property
    def options(self) -> str:
        """As options of the command line."""
        budget = f" --bits {self.budget:g}" if self.budget else ""
        return f"--weights {self.kind}{budget} --group-size {self.group or CHANNEL}" + ("" if self.symmetric else " --asymmetric")

    def smallest_group(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Of weights with these shapes, as far as they are grouped at all; 32 where none is."""
        forms = [(self.form(name, shape), shape[-1]) for name, shape in shapes.items()]
        return min((form.group for form, size in forms if form is not None and form.group < size), default=min(GROUPS))

    def form(self, name: str, shape: Sequence[int]) -> Form | None:
        """How the weight `name` [..., out, in] is stored; None: in float32.

        Where the group does not divide the input axis, the largest smaller one that does is taken, else none: one scale a row.
        """
        if len(shape) < 2 or _ROUTER.fullmatch(name):
            return None
        size = shape[-1]
        if name in _TABLES:
            return Form(8, size)
        if self.wide and unit_of(name) in self.wide:
            return Form(8, size, self.symmetric)
        fitting = [group for group in GROUPS if group <= self.group and size % group == 0]
        return Form(self.bits, max(fitting, default=size), self.symmetric)
