"""Small multiples: every compile-fidelity case at every window edge it crosses and where it first fails, position by position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator
from numpy.typing import NDArray

from alize.report import svg
from alize.report.canvas import WIDTH, blank, decades, draw, panel, use_log
from alize.report.edges import clusters
from alize.report.plots import FIDELITY
from alize.report.series import series
from alize.report.svg import COLOURS
from alize.report.wording import many, shortened
from alize.validate.evidence import CaseEvidence, Evidence
from alize.validate.measure import Figures

__all__ = ["Zooms", "zoom_plot"]

_REACH = 6  # positions shown on each side of an edge
_PER_CASE = 3
_COLUMNS = 4
_MOST = 16  # panels
_HEIGHT, _GAP, _LEFT = 74.0, 24.0, 36.0


@dataclass(frozen=True)
class Zooms:
    """svg: the figure.   left_out: how many panels there would have been beyond those drawn."""

    svg: Markup
    left_out: int


@dataclass(frozen=True)
class _Zoom:
    case: CaseEvidence
    edges: tuple[int, ...]

    @property
    def span(self) -> tuple[int, int]:
        return max(self.edges[0] - _REACH, 0), self.edges[-1] + _REACH


def zoom_plot(evidence: Evidence, edges: Mapping[int, str]) -> Zooms | None:
    """The largest logit error around each edge, failing cases first; None where no case crosses an edge."""
    found = [zoom for case in evidence.cases if case.question == FIDELITY for zoom in _zooms(case, edges)]
    if not found:
        return None
    found.sort(key=lambda zoom: not zoom.case.reasons)
    shown = found[:_MOST]
    near = [figures.error[_inside(figures, zoom)] for zoom in shown for figures in (zoom.case.figures, evidence.floor) if figures]
    low, high = decades(near, [zoom.case.limit for zoom in shown])
    rows = -(-len(shown) // _COLUMNS)
    pitch = _HEIGHT + 44
    width = (WIDTH - _LEFT) / _COLUMNS - _GAP
    with svg.settings():
        figure = blank(rows * pitch + 4)
        for index, zoom in enumerate(shown):
            row, column = divmod(index, _COLUMNS)
            axes = panel(figure, _LEFT + column * (width + _GAP), (rows - 1 - row) * pitch + 20, width, _HEIGHT)
            use_log(axes, low, high, labels=column == 0, ticks=5)
            _panel(axes, zoom, evidence.floor, edges)
        drawing = svg.inline(figure, name="zoom", label=_label(shown), titles={})
    return Zooms(drawing, len(found) - len(shown))


def _zooms(case: CaseEvidence, edges: Mapping[int, str]) -> list[_Zoom]:
    """Where to look in a case: around the windows' edges, at its first failure, around the positions that it names itself."""
    positions = {int(position) for position in case.figures.positions}
    of_windows = [group for group in clusters(edges, _REACH) if positions.intersection(group)]
    near = {edge + offset for edge in edges for offset in range(-_REACH, _REACH + 1)}
    off = np.flatnonzero(case.figures.error > case.limit)
    failure = {int(case.figures.positions[index]) for index in off[:1]} - near
    own = clusters(positions & set(case.edges) - near - failure, _REACH)
    groups = [*of_windows, *([position] for position in failure), *own]
    return [_Zoom(case, tuple(group)) for group in groups[:_PER_CASE]]


def _inside(figures: Figures, zoom: _Zoom) -> NDArray[np.bool_]:
    first, last = zoom.span
    inside: NDArray[np.bool_] = (figures.positions >= first) & (figures.positions <= last)
    return inside


def _panel(axes: Axes, zoom: _Zoom, floor: Figures | None, edges: Mapping[int, str]) -> None:
    """One case at one edge: dots in the colour of what each position is, within its limit or beyond."""
    low, _ = axes.get_ylim()
    first, last = zoom.span
    axes.set_xlim(first - 0.5, last + 0.5)
    for edge in zoom.edges:
        axes.axvline(edge, color=COLOURS["soft"], linewidth=0.5, linestyle=(0, (4, 3)), zorder=0.5)
    if floor is not None:
        inside = _inside(floor, zoom)
        ground = series(floor.positions[inside], floor.error[inside])
        axes.fill_between(ground.x, np.maximum(ground.y, low), low, color=COLOURS["shade"], linewidth=0, zorder=0.8)
    if np.isfinite(zoom.case.limit) and zoom.case.limit > 0:
        axes.axhline(zoom.case.limit, color=COLOURS["fail"], linewidth=0.9, linestyle=(0, (5, 2)))
    inside = _inside(zoom.case.figures, zoom)
    positions, error = zoom.case.figures.positions[inside], zoom.case.figures.error[inside]
    draw(axes, series(positions, error), colour="soft", gid="line", width=0.6)
    finite = np.isfinite(error)
    for colour, chosen in (("fidelity", error <= zoom.case.limit), ("fail", finite & (error > zoom.case.limit))):
        dots: dict[str, Any] = {"markersize": 6, "markeredgewidth": 0, "color": COLOURS[colour]}
        axes.plot(positions[chosen], np.maximum(error[chosen], low), ".", **dots)
    middle = next((edge for edge in zoom.edges if edges.get(edge, "").isalnum()), zoom.edges[0])
    name = f"{middle} = {edges[middle]}" if edges.get(middle, str(middle)) != str(middle) else str(middle)
    axes.xaxis.set_major_locator(FixedLocator([first, middle, last]))
    axes.xaxis.set_major_formatter(FixedFormatter([str(first), name, str(last)]))
    colour = COLOURS["fail" if zoom.case.reasons else "ink"]
    axes.set_title(shortened(zoom.case.name, 28), loc="left", color=colour, fontsize=8.5, y=1.06)


def _label(zooms: Sequence[_Zoom]) -> str:
    failing = sum(bool(zoom.case.reasons) for zoom in zooms)
    return f"Largest logit error around window edges, {many(len(zooms), 'panel')}, {failing} of failing cases, logarithmic."
