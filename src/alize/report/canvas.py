"""What the figures have in common: panels measured in points, logarithmic error axes, lines, marks and labels at the side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from alize.report.edges import clusters
from alize.report.series import Series
from alize.report.svg import COLOURS
from alize.report.wording import number

__all__ = ["WIDTH", "Label", "blank", "decades", "draw", "label_side", "mark_edges", "panel", "use_log"]

WIDTH = 690.0
"""Of every figure, in points."""

_LINE_HEIGHT = 10.5
_EMPTY = (1e-8, 1.0)  # the range of an axis that has nothing on it


@dataclass(frozen=True)
class Label:
    """Said at the right of a panel, at the height of `at`, a value of its y axis."""

    at: float
    text: str
    colour: str


def blank(height: float) -> Figure:
    """A figure of so many points; at 72 dots an inch what matplotlib takes for pixels are points."""
    return Figure(figsize=(WIDTH / 72, height / 72), dpi=72)


def panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in points, from the lower left corner of the figure."""
    total = figure.get_figheight() * 72
    return figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))


def decades(values: Iterable[NDArray[np.float64]], limits: Iterable[float] = ()) -> tuple[float, float]:
    """The powers of ten that hold all but the smallest of the values, and the limits; zeros have no place on such an axis."""
    known = [np.concatenate([*values, np.empty(0)]), np.array([*limits], np.float64)]
    kept, marks = (array[np.isfinite(array) & (array > 0)] for array in known)
    if len(kept) == 0:
        kept = marks
    if len(kept) == 0:
        return _EMPTY
    low = np.floor(np.log10(np.quantile(kept, 0.01)))
    high = np.ceil(np.log10(max(kept.max(), *marks, kept.max()) * 1.6))
    return float(10.0**low), float(10.0 ** max(high, low + 1))


def use_log(axes: Axes, low: float, high: float, *, labels: bool = True, ticks: int = 8) -> None:
    """A y axis in powers of ten, with a faint line at each tick, at most `ticks` of them; x ticks at whole positions."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(numticks=ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: number(tick)))
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True))
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.4)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=labels)


def draw(axes: Axes, line: Series, *, colour: str, gid: str, width: float = 0.9, opacity: float = 1.0) -> None:
    """A line; points without neighbours as dots; at the top edge a triangle where the figure is not finite."""
    low, _ = axes.get_ylim()
    axes.plot(line.x, np.maximum(line.y, low), color=COLOURS[colour], linewidth=width, alpha=opacity, gid=gid)
    x, y = line.lone
    if len(x):
        axes.plot(x, np.maximum(y, low), ".", markersize=3, color=COLOURS[colour], markeredgewidth=0, gid=gid)
    if len(line.infinite):
        top = np.full(len(line.infinite), 0.975)
        style: dict[str, Any] = {"color": COLOURS["fail"], "markeredgewidth": 0, "markersize": 4.5}
        axes.plot(line.infinite, top, "^", transform=axes.get_xaxis_transform(), gid=gid, clip_on=False, **style)


def mark_edges(axes: Axes, names: Mapping[int, str], first: int, last: int) -> None:
    """A thin line at every edge between the positions first and last, named W and 2W; edges too near for that share a name."""
    reach = round((last - first) * 30 / axes.bbox.width)
    for group in clusters((edge for edge in names if first <= edge <= last), reach):
        for edge in group:
            axes.axvline(edge, color=COLOURS["soft"], linewidth=0.5, linestyle=(0, (4, 3)), zorder=0.5)
        plain = [names[edge] for edge in group if names[edge][-2:] not in ("−1", "+1")]
        text = ", ".join(plain or [names[group[0]]])
        middle = (group[0] + group[-1]) / 2
        place = axes.get_xaxis_transform()
        axes.text(middle, 1.02, text, transform=place, ha="center", va="baseline", color=COLOURS["soft"])


def label_side(axes: Axes, labels: Sequence[Label]) -> None:
    """Labels at the right, moved apart where they would overlap, each with a stroke to the height it is about."""
    width, height = axes.bbox.width, axes.bbox.height
    low, high = np.log10(axes.get_ylim())
    ordered = sorted(labels, key=lambda label: label.at)
    points = [float(np.clip((np.log10(max(label.at, 10.0**low)) - low) / (high - low), 0, 1)) * height for label in ordered]
    for label, point, place in zip(ordered, points, _apart(points, height), strict=True):
        stroke = ([1, 1 + 8 / width], [point / height, place / height])
        axes.plot(*stroke, transform=axes.transAxes, clip_on=False, color=COLOURS[label.colour], linewidth=0.8)
        at = (1 + 11 / width, (place - 3) / height)
        axes.text(*at, label.text, transform=axes.transAxes, va="baseline", color=COLOURS[label.colour])


def _apart(points: Sequence[float], top: float) -> list[float]:
    """Heights in ascending order, moved so that no two are nearer than a line of text and the last is not above `top`."""
    places = list(points)
    for index in range(1, len(places)):
        places[index] = max(places[index], places[index - 1] + _LINE_HEIGHT)
    ceiling = top
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - _LINE_HEIGHT
    return places
