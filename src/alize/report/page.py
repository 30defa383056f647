"""The page: facts, figures and tables put into templates/report.html.j2."""

import dataclasses
import importlib.resources
from collections.abc import Iterable

import jinja2
import numpy as np
from markupsafe import Markup

from alize.artifact import Manifest
from alize.mixing import Mix
from alize.progress import byte_count
from alize.report.edges import edge_names
from alize.report.experts import expert_plot, expert_summary
from alize.report.mix import mix_plot, mix_summary
from alize.report.plots import FIDELITY, error_plot, kl_plot
from alize.report.tables import Question, case_rows, facts, file_rows, floor_rows, questions, windows
from alize.report.wording import chain, many, number, value, visible
from alize.report.zooms import zoom_plot
from alize.validate.evidence import Evidence
from alize.validate.measure import NEAR_TIE, Figures

__all__ = ["render"]

_TEMPLATE = "report.html.j2"
_FINDINGS = 5  # shown at once
_SIGNS = {"pass": "✓", "fail": "✕", "partial": "◐"}
_LEVELS = {
    "device-validated": "what was measured is the artifact itself, run on the kind of device it is for",
    "graph-validated": "what was measured is the exact graph that was compiled, run on the CPU: the device itself was not there",
}


def render(manifest: Manifest, evidence: Evidence, sizes: dict[str, int], mix: Mix | None = None) -> str:
    """report.html: one file that fetches nothing and runs nothing. The same input gives the same text.

    manifest: without files and digest, which are sealed after this page.   sizes: path inside the artifact -> bytes.
    mix: what was chosen, of weights in int4 and int8.
    """
    evidence = _presentable(evidence)
    asked = questions(case_rows(manifest, evidence))
    edges = edge_names(manifest.model.windows)
    validation = manifest.validation
    left_out = list(dict.fromkeys((*validation.left_out, *evidence.left_out)))
    floors = floor_rows(evidence)
    further = validation.figures.keys() - {name for name, _ in floors}
    return _template().render(
        manifest=manifest,
        sign=_SIGNS[validation.verdict],
        level=_LEVELS[validation.level],
        summary=_summary(validation.verdict, asked, bool(evidence.findings), left_out),
        subtitle=_subtitle(manifest),
        findings=evidence.findings or _reasons(asked),
        first_findings=_FINDINGS,
        near_tie=number(NEAR_TIE),
        left_out=left_out,
        questions=asked,
        floors=floors,
        error_plot=error_plot(evidence, edges),
        zoom_plot=zoom_plot(evidence, edges),
        kl_plot=kl_plot(evidence, edges),
        mix_plot=mix_plot(mix, evidence) if mix else None,
        mix_summary=mix_summary(mix) if mix else "",
        expert_plot=expert_plot(evidence.coverage) if evidence.coverage else None,
        expert_summary=expert_summary(evidence.coverage) if evidence.coverage else "",
        top_k=manifest.model.experts_per_token,
        edges=edges,
        facts=facts(manifest),
        config=[(name, value(setting)) for name, setting in sorted(manifest.source.config.items())],
        budget=[(name.replace("_", " "), number(limit)) for name, limit in sorted(validation.budget.items())],
        figures=[(name, _named(validation.figures[name])) for name in sorted(further)],
        continuation=evidence.continuation,
        files=file_rows(sizes),
        total=byte_count(sum(sizes.values())),
    )


def _template() -> jinja2.Template:
    text = importlib.resources.files("alize").joinpath("templates", _TEMPLATE).read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda said: visible(said) if isinstance(said, str) and not isinstance(said, Markup) else said,
    )
    environment.filters["many"] = many
    return environment.from_string(text)


def _summary(verdict: str, asked: list[Question], findings: bool, left_out: list[str]) -> str:
    """The verdict in a sentence or two."""
    said = [_outcome(asked)]
    failing = any(question.failing for question in asked)
    fidelity = next(question for question in asked if question.name == FIDELITY)
    if findings and not failing:
        said.append("Something else was found to be wrong.")
    elif fidelity.worst and not fidelity.failing:
        said.append(f"The largest logit error of compile fidelity is {fidelity.worst.of_limit} {fidelity.worst.place}.")
    if verdict == "partial":
        why = f": the time budget left out {many(len(left_out), 'part')}" if left_out else ""
        said.append(f"Too little was measured for a verdict{why}. alize refuses to load this artifact.")
    if verdict == "fail":
        said.append("Such an artifact must not be used: alize neither seals nor loads it.")
    return " ".join(said)


def _outcome(asked: list[Question]) -> str:
    count, failing = sum(len(question.rows) for question in asked), sum(question.failing for question in asked)
    if failing:
        return f"{failing} of {many(count, 'case')} {'fails' if failing == 1 else 'fail'}."
    return {0: "No case was measured.", 1: "The one case passes."}.get(count, f"All {count} cases pass.")


def _subtitle(manifest: Manifest) -> str:
    model, target = manifest.model, manifest.target
    shape = f"{many(model.layers, 'layer')}, {windows(manifest)}"
    return f"{manifest.source.title} compiled for {target.backend} on {target.device}, {target.weights} weights ({shape})"


def _reasons(asked: Iterable[Question]) -> list[str]:
    """What failed, where nothing was found that explains it."""
    return [f"{row.name} ({row.question}): {chain(row.reasons)}" for question in asked for row in question.rows if row.reasons]


def _named(figures: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {number(figure)}" for name, figure in sorted(figures.items()))


def _presentable(evidence: Evidence) -> Evidence:
    """Names without what no page may hold. A figure that is not a number is no better than an infinite one, and sorts worse."""

    def mended(figures: Figures) -> Figures:
        kl, error = (np.where(np.isnan(values), np.inf, values) for values in (figures.kl, figures.error))
        return dataclasses.replace(figures, kl=kl, error=error)

    return dataclasses.replace(
        evidence,
        cases=tuple(dataclasses.replace(case, name=visible(case.name), figures=mended(case.figures)) for case in evidence.cases),
        floor=evidence.floor and mended(evidence.floor),
        floor_bf16=evidence.floor_bf16 and mended(evidence.floor_bf16),
    )
