"""What a mix of int4 and int8 buys: the KL that is expected for each number of bits, and what was measured of the artifact."""

from collections import defaultdict
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from alize.mixing import Mix
from alize.report import svg
from alize.report.canvas import WIDTH, Label, blank, decades, label_side, panel, use_log
from alize.report.svg import COLOURS
from alize.report.wording import chain, many, number
from alize.validate.evidence import Evidence

__all__ = ["mix_plot", "mix_summary"]


def mix_plot(mix: Mix, evidence: Evidence) -> Markup:
    """Expected KL along bits a weight, from all in int4 to all in int8, with the mix that was built, and its measured loss."""
    measured = [float(case.figures.kl.mean()) for case in evidence.cases if case.question == "quantisation loss"]
    bits, kl = (np.array(values) for values in zip(*mix.curve, strict=True))
    low, high = decades([kl, np.array([mix.kl, *measured])])
    with svg.settings():
        figure = blank(250)
        axes = panel(figure, 40, 36, WIDTH - 40 - 150, 200)
        use_log(axes, low, high)
        axes.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axes.set_xlim(bits[0] - 0.05, bits[-1] + 0.05)
        axes.set_xlabel("bits a weight of the layers' matrices, scales and zero points counted")
        axes.plot(bits, np.maximum(kl, low), color=COLOURS["quantisation"], linewidth=1.2, gid="curve")
        axes.axvline(mix.bits, color=COLOURS["soft"], linewidth=0.5, linestyle=(0, (4, 3)), zorder=0.5)
        above = axes.get_xaxis_transform()
        axes.text(mix.bits, 1.02, f"{mix.bits:.2f} bits", transform=above, ha="center", va="baseline", color=COLOURS["soft"])
        for end, kind, side, place in ((0, "int4", "left", (8, 4)), (-1, "int8", "right", (-14, -4))):
            style: dict[str, Any] = {"xytext": place, "textcoords": "offset points", "ha": side}
            axes.annotate(f"all in {kind}", (bits[end], max(kl[end], low)), color=COLOURS["soft"], **style)
        labels = [Label(mix.kl, f"expected {number(mix.kl)}", "quantisation")]
        _point(axes, mix.bits, mix.kl, "o", gid="expected")
        for loss in measured[:1]:
            _point(axes, mix.bits, loss, "D", gid="measured")
            labels.append(Label(loss, f"measured {number(loss)}", "ink"))
        label_side(axes, labels)
        told = f", measured {number(measured[0])}" if measured else ""
        titles = {
            "curve": f"from {number(kl[0])} in int4 at {bits[0]:.2f} bits to {number(kl[-1])} in int8 at {bits[-1]:.2f}",
            "expected": f"expected of this mix on the text that it was chosen with: KL {number(mix.kl)} at {mix.bits:.2f} bits",
            "measured": f"measured by the validation, on its own tokens{told}",
        }
        label = f"Expected KL along bits a weight, {titles['curve']}; this mix: {number(mix.kl)} at {mix.bits:.2f} bits{told}"
        return svg.inline(figure, name="mix", label=label, titles=titles)


def _point(axes: Axes, bits: float, kl: float, mark: str, *, gid: str) -> None:
    colour = COLOURS["ink" if gid == "measured" else "quantisation"]
    style: dict[str, Any] = {"markersize": 6, "color": colour, "clip_on": False}
    if gid == "measured":
        style |= {"markerfacecolor": "none", "markeredgewidth": 1.4}
    axes.plot([bits], [max(kl, axes.get_ylim()[0])], mark, gid=gid, **style)


def mix_summary(mix: Mix) -> str:
    """The mix in a few sentences."""
    kinds, layers = defaultdict[str, int](int), {unit.split(".")[1] for unit in mix.quantisation.wide}
    for unit in mix.quantisation.wide:
        kinds[unit.split(".", 2)[2]] += 1
    counts = [f"{count} of {part}" for part, count in sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0]))]
    chosen = f"{chain(counts)}, in {many(len(layers), 'layer')}" if counts else "nothing"
    return (
        f"A budget of {mix.quantisation.budget:g} bits a weight went to int8 where it saves most KL: {chosen}; the rest is in "
        "int4. The line is what each budget would buy, from all in int4 to all in int8: an estimate from gradients, for rounding "
        f"without calibration, on the text {mix.text.split(',')[0]}. The dot is this mix, the diamond what validation measured "
        "of it, on other tokens."
    )
