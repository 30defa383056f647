"""Which weights an artifact holds as integers, and in what form. Nothing is computed here; `round_to_integers` does that.

Every matrix that is multiplied with is rounded in groups along its input axis, the axis that the product sums over. Tables
that tokens choose rows of (embedding and head, tied or not) are int8 with one scale a row, whatever was asked for: they weigh
little in a large model and a lot in what it says. Routers and vectors (norms) stay in float32.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alize.errors import UsageError

__all__ = ["CHANNEL", "DEFAULT_GROUPS", "GROUPS", "Form", "Quantisation"]

CHANNEL = "channel"
GROUPS = (128, 64, 32)
DEFAULT_GROUPS = {"int8": CHANNEL, "int4": "128"}
"""int8 loses next to nothing with one scale a row; int4 needs groups."""

_NAME = re.compile(r"(int4|int8)(?:-(?:g(\d+)|(channel)))?(-asym)?")
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

    def describe(self, size: int) -> str:
        """int4 g64 asymmetric, for a matrix of that many inputs."""
        group = CHANNEL if self.group == size else f"g{self.group}"
        return f"int{self.bits} {group}" + ("" if self.symmetric else " asymmetric")


@dataclass(frozen=True)
class Quantisation:
    """What was asked for. `group` 0: one scale a row."""

    bits: int
    group: int
    symmetric: bool = True

    @staticmethod
    def parse(weights: str) -> "Quantisation | None":
        """int4, int8-channel, int4-g64, int4-g64-asym ...; None for any other name (of a float type)."""
        match = _NAME.fullmatch(weights)
        if match is None:
            return None
        chosen = Quantisation(int(match[1][3:]), 0, match[4] is None)
        return chosen.grouped(match[3] or match[2] or DEFAULT_GROUPS[match[1]])

    def grouped(self, group: str) -> "Quantisation":
        """The same with groups of another size ("channel": none). Raises UsageError."""
        sizes = {CHANNEL: 0} | {str(size): size for size in GROUPS}
        if group not in sizes:
            raise UsageError(f"--group-size {group} is unknown: choose one of {', '.join(map(str, GROUPS))} and {CHANNEL}")
        return replace(self, group=sizes[group])

    def __str__(self) -> str:
        """What `parse` reads, in one spelling."""
        group = f"g{self.group}" if self.group else CHANNEL
        return f"int{self.bits}-{group}" + ("" if self.symmetric else "-asym")

    @property
    def options(self) -> str:
        """As options of the command line."""
        group = self.group or CHANNEL
        return f"--weights int{self.bits} --group-size {group}" + ("" if self.symmetric else " --asymmetric")

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
        fitting = [group for group in GROUPS if group <= self.group and size % group == 0]
        return Form(self.bits, max(fitting, default=size), self.symmetric)
