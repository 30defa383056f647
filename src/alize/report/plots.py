"""Figures along positions: the largest logit error, and KL for each of the three questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from alize.report import svg
from alize.report.canvas import WIDTH, Label, blank, decades, draw, label_side, mark_edges, panel, use_log
from alize.report.series import COLUMNS, envelope_step, series
from alize.report.svg import COLOURS
from alize.report.wording import many, number, shortened
from alize.validate.evidence import CaseEvidence, Evidence
from alize.validate.measure import Figures

__all__ = ["FIDELITY", "QUESTIONS", "Plot", "error_plot", "kl_plot"]

FIDELITY = "compile fidelity"
QUESTIONS: Mapping[str, str] = {FIDELITY: "fidelity", "quantisation loss": "quantisation", "runtime loss": "runtime"}
"""The three questions, in the order they are asked, and the colour of each."""

_KL_COLUMNS = COLUMNS // 3
_NAMED = 6  # failing cases with a label of their own


@dataclass(frozen=True)
class Plot:
    """svg: the figure.   step: how many neighbouring positions share a point, 1 where each has its own."""

    svg: Markup
    step: int


def error_plot(evidence: Evidence, edges: Mapping[int, str]) -> Plot | None:
    """The largest logit error along positions of every compile-fidelity case; None where there is no such case."""
    cases = [case for case in evidence.cases if case.question == FIDELITY and len(case.figures.positions)]
    if not cases:
        return None
    floors = [floor for floor in (evidence.floor, evidence.floor_bf16) if floor is not None]
    everything = [case.figures for case in cases] + floors
    limits = sorted({case.limit for case in cases})
    low, high = decades([figures.error for figures in everything], limits)
    first, last = _extent(everything)
    with svg.settings():
        figure = blank(290)
        axes = panel(figure, 36, 34, WIDTH - 36 - 132, 232)
        use_log(axes, low, high)
        axes.set_xlim(first - 0.5, last + 0.5)
        axes.set_xlabel("position in its row")
        mark_edges(axes, edges, first, last)
        labels = _floors(axes, evidence) + _limits(axes, limits) + _cases(axes, cases)
        label_side(axes, labels)
        titles = {f"case{index}": _touch(case, case.figures.error, "logit error") for index, case in enumerate(cases)}
        drawing = svg.inline(figure, name="error", label=_error_label(cases, limits), titles=titles)
    return Plot(drawing, max(envelope_step(figures.positions) for figures in everything))


def kl_plot(evidence: Evidence, edges: Mapping[int, str]) -> Plot | None:
    """KL along positions, one panel for each question that has cases, all on one scale; None where there is no case."""
    cases = [case for case in evidence.cases if len(case.figures.positions)]
    asked = [question for question in QUESTIONS if any(case.question == question for case in cases)]
    if not asked:
        return None
    budgets = [case.limit for case in cases if case.question != FIDELITY]
    low, high = decades([case.figures.kl for case in cases], budgets)
    low = max(low, 1e-16)  # below, there is only the rounding of KL's own sum
    gap, left = 22.0, 40.0
    width = (WIDTH - left - 12 - gap * (len(asked) - 1)) / len(asked)
    titles: dict[str, str] = {}
    with svg.settings():
        figure = blank(250)
        for column, question in enumerate(asked):
            axes = panel(figure, left + column * (width + gap), 34, width - 8, 172)
            use_log(axes, low, max(high, low * 10), labels=column == 0)
            group = [case for case in cases if case.question == question]
            titles |= _kl_panel(axes, question, group, evidence.floor, edges)
        label = "KL along positions: " + "; ".join(_kl_label(question, cases) for question in asked)
        drawing = svg.inline(figure, name="kl", label=label, titles=titles)
    return Plot(drawing, max(envelope_step(case.figures.positions, columns=_KL_COLUMNS) for case in cases))


def _kl_panel(
    axes: Axes, question: str, cases: Sequence[CaseEvidence], floor: Figures | None, edges: Mapping[int, str]
) -> dict[str, str]:
    """Draws one question; returns what is said of each case when it is pointed at."""
    colour = QUESTIONS[question]
    first, last = _extent([case.figures for case in cases])
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_xlabel("position in its row")
    axes.set_title(question, loc="left", color=COLOURS[colour], fontweight="bold", fontsize=9, y=1.09)
    mark_edges(axes, edges, first, last)
    if question == FIDELITY:
        _shade(axes, floor, "kl")
    beside = axes.get_yaxis_transform()
    for limit in sorted({case.limit for case in cases if question != FIDELITY and 0 < case.limit < np.inf}):
        axes.plot([1.0, 1.045], [limit, limit], transform=beside, clip_on=False, color=COLOURS["fail"], linewidth=2)
    titles = {}
    for index, case in enumerate(sorted(cases, key=lambda case: bool(case.reasons))):
        gid = f"{colour}{index}"
        titles[gid] = _touch(case, case.figures.kl, "KL")
        line = series(case.figures.positions, case.figures.kl, columns=_KL_COLUMNS)
        shown = "fail" if case.reasons else colour
        draw(axes, line, colour=shown, gid=gid, opacity=1.0 if case.reasons else 0.55, width=0.8)
        mean = float(case.figures.kl.mean())
        if np.isfinite(mean) and question != FIDELITY:
            low, _ = axes.get_ylim()
            style: dict[str, Any] = {"clip_on": False, "markersize": 5, "color": COLOURS[shown], "markeredgewidth": 0}
            axes.plot([1.02], [max(mean, low)], "<", transform=beside, gid=gid, **style)
    return titles


def _extent(figures: Sequence[Figures]) -> tuple[int, int]:
    lows, highs = zip(*((int(one.positions.min()), int(one.positions.max())) for one in figures), strict=True)
    return min(lows), max(*highs, min(lows) + 1)


def _shade(axes: Axes, floor: Figures | None, figure: str) -> None:
    """The float32 floor, as ground to stand on."""
    if floor is not None:
        low, _ = axes.get_ylim()
        line = series(floor.positions, getattr(floor, figure))
        axes.fill_between(line.x, np.maximum(line.y, low), low, color=COLOURS["shade"], linewidth=0, zorder=0.8)


def _floors(axes: Axes, evidence: Evidence) -> list[Label]:
    labels = []
    _shade(axes, evidence.floor, "error")
    if evidence.floor is not None:
        labels.append(Label(float(np.median(evidence.floor.error)) * 0.7, "float32 floor", "soft"))
    if evidence.floor_bf16 is not None:
        line = series(evidence.floor_bf16.positions, evidence.floor_bf16.error)
        draw(axes, line, colour="bf16", gid="bf16", width=0.6)
        labels.append(Label(float(np.median(evidence.floor_bf16.error)), "bfloat16 floor", "bf16"))
    return labels


def _limits(axes: Axes, limits: Sequence[float]) -> list[Label]:
    shown = [limit for limit in limits if np.isfinite(limit) and limit > 0]
    for limit in shown:
        axes.axhline(limit, color=COLOURS["fail"], linewidth=0.9, linestyle=(0, (5, 2)))
    return [Label(limit, f"limit {number(limit)}", "fail") for limit in shown]


def _cases(axes: Axes, cases: Sequence[CaseEvidence]) -> list[Label]:
    """Passing cases share a label, failing ones are named, the worst of them where there are too many."""
    passing: list[CaseEvidence] = []
    failing: list[CaseEvidence] = []
    order = sorted(range(len(cases)), key=lambda index: bool(cases[index].reasons))
    for index in order:
        case, line = cases[index], series(cases[index].figures.positions, cases[index].figures.error)
        bad = bool(case.reasons)
        draw(axes, line, colour="fail" if bad else "fidelity", gid=f"case{index}", opacity=0.9 if bad else 0.55)
        (failing if bad else passing).append(case)
    labels = []
    if passing:
        middle = float(np.median([np.median(case.figures.error) for case in passing]))
        labels.append(Label(middle, f"{many(len(passing), 'case')} within", "fidelity"))
    failing.sort(key=lambda case: -float(case.figures.error.max()))
    top = axes.get_ylim()[1]
    for case in failing[:_NAMED]:
        labels.append(Label(min(float(case.figures.error.max()), top), shortened(case.name, 24), "fail"))
    if more := failing[_NAMED:]:
        labels.append(Label(min(float(more[0].figures.error.max()), top), f"and {len(more)} more", "fail"))
    return labels


def _touch(case: CaseEvidence, values: np.ndarray, what: str) -> str:
    worst = int(values.argmax())
    verdict = "fails" if case.reasons else "passes"
    return f"{case.name} {verdict}: worst {what} {number(float(values[worst]))} at position {case.figures.positions[worst]}"


def _error_label(cases: Sequence[CaseEvidence], limits: Sequence[float]) -> str:
    worst = max(cases, key=lambda case: float(case.figures.error.max()))
    failing = sum(bool(case.reasons) for case in cases)
    return (
        f"Largest logit error along positions, logarithmic: {many(len(cases), 'case')}, {failing} failing; "
        f"limit {' and '.join(number(limit) for limit in limits)}; {_touch(worst, worst.figures.error, 'logit error')}."
    )


def _kl_label(question: str, cases: Sequence[CaseEvidence]) -> str:
    group = [case for case in cases if case.question == question]
    worst = max(group, key=lambda case: float(case.figures.kl.max()))
    return f"{question}, {many(len(group), 'case')}, {_touch(worst, worst.figures.kl, 'KL')}"
