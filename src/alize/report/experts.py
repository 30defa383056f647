"""The experts as a picture: a cell for each expert of each layer, and how the validation ran it."""

import math
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from alize.report import svg
from alize.report.canvas import WIDTH, blank, panel
from alize.report.svg import COLOURS
from alize.report.wording import chain, many
from alize.validate.coverage import Coverage

__all__ = ["expert_plot", "expert_summary"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 36.0, 12.0, 6.0, 34.0
_STEPS = 5  # shades of the ground that a number stands on


def expert_plot(coverage: Coverage) -> Markup:
    """Layers across, experts upwards: how many compared tokens chose each; forced ones framed, unreachable ones crossed out."""
    layers, experts = coverage.counts.shape
    width = WIDTH - _LEFT - _RIGHT
    cell = min(width / layers, 30.0)
    height = max(min(cell, 15.0), 8.0)
    titles: dict[str, str] = {}
    with svg.settings():
        figure = blank(_TOP + height * experts + _BOTTOM)
        axes = panel(figure, _LEFT, _BOTTOM, cell * layers, height * experts)
        axes.set_xlim(-0.5, layers - 0.5)
        axes.set_ylim(-0.5, experts - 0.5)
        for layer in range(layers):
            for expert in range(experts):
                titles[f"pair{layer}.{expert}"] = _cell(axes, coverage, layer, expert, number=cell >= 14 and height >= 10)
        _axes(axes, layers, experts, cell, height)
        return svg.inline(figure, name="experts", label=expert_summary(coverage), titles=titles)


def expert_summary(coverage: Coverage) -> str:
    """240 experts in 30 layers: 238 chosen by the tokens, 2 forced by name."""
    layers = coverage.counts.shape[0]
    figures = {name: int(figure) for name, figure in coverage.figures().items()}
    parts = [f"{figures['by_prompts']:,} chosen by the tokens"]
    parts += [f"{figures['forced']:,} forced by name"] if figures["forced"] else []
    parts += [f"{figures['unreachable']:,} that no hidden state can reach"] if figures["unreachable"] else []
    parts += [f"{int(coverage.wrong.sum()):,} wrong"] if coverage.wrong.any() else []
    return f"{many(figures['pairs'], 'expert')} in {many(layers, 'layer')}: {chain(parts)}"


def _cell(axes: Axes, coverage: Coverage, layer: int, expert: int, *, number: bool) -> str:
    """Draws one; returns what is said of it when it is pointed at."""
    count, most = int(coverage.counts[layer, expert]), max(int(coverage.counts[layer].max()), 1)
    forced, never, wrong = (bool(part[layer, expert]) for part in (coverage.forced, coverage.unreachable, coverage.wrong))
    colour = COLOURS["fail" if wrong else "fidelity"]
    shade = 0.0 if not count else round((0.15 + 0.5 * round(count / most * _STEPS) / _STEPS), 2)
    gid = f"pair{layer}.{expert}"
    place = (layer - 0.45, expert - 0.42)
    ground = Rectangle(place, 0.9, 0.84, facecolor=colour, alpha=0.75 if wrong else shade, linewidth=0, gid=gid)
    axes.add_patch(ground)
    if forced or never or not count:
        edge = colour if forced else COLOURS["soft"]
        axes.add_patch(Rectangle(place, 0.9, 0.84, fill=False, edgecolor=edge, linewidth=1.2 if forced else 0.6, gid=gid))
    if never:
        style: dict[str, Any] = {"color": COLOURS["soft"], "linewidth": 0.6, "gid": gid}
        axes.plot([layer - 0.45, layer + 0.45], [expert - 0.42, expert + 0.42], **style)
    if number and count:
        axes.text(layer, expert, f"{count}", ha="center", va="center_baseline", fontsize=6.5, color=COLOURS["ink"])
    said = f"chosen by {many(count, 'token')}" if count else "no token chose it"
    said += ", run by name in the cut-out layer" if forced else ""
    said += ", no hidden state puts it among the chosen" if never else ""
    return f"layer {layer}, expert {expert}: {said}{', wrong' if wrong else ''}"


def _axes(axes: Axes, layers: int, experts: int, cell: float, height: float) -> None:
    axes.set_xticks(range(0, layers, math.ceil(18 / cell)))
    axes.set_yticks(range(0, experts, math.ceil(9 / height)))
    axes.tick_params(length=0)
    axes.set_xlabel("layer")
    axes.set_ylabel("expert")
    for spine in axes.spines.values():
        spine.set_visible(False)
