"""What the page says in rows: cases and what each used of its limit, the three questions, facts, file sizes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from alize.artifact import Manifest, ModelInfo, Source
from alize.optimize.quantisation import MIXED
from alize.progress import byte_count
from alize.report.plots import FIDELITY, QUESTIONS
from alize.report.wording import many, number, percent, share, value
from alize.validate.evidence import CaseEvidence, Evidence
from alize.validate.measure import Figures

__all__ = ["CaseRow", "FileRow", "Question", "case_rows", "facts", "file_rows", "floor_rows", "questions", "windows"]


@dataclass(frozen=True)
class CaseRow:
    """One case as text.   used: its decisive figure as a part of its limit, None where the limit is not known."""

    name: str
    question: str
    passed: bool
    cells: tuple[str, ...]
    used: float | None
    limit: str
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def bar(self) -> float:
        """Percent of a bar that is full at the limit."""
        return 0.0 if self.used is None else round(min(self.used, 1.0) * 100, 1)

    @property
    def of_limit(self) -> str:
        return "" if self.used is None else percent(self.used)

    @property
    def place(self) -> str:
        """What follows the number: 13 % of its limit, 310 × its limit."""
        return "its limit" if self.of_limit.endswith("×") else "of its limit"


@dataclass(frozen=True)
class Question:
    """One of the three questions: its cases, and how near the worst of them is to its limit."""

    name: str
    colour: str
    meaning: str
    rows: tuple[CaseRow, ...]

    @property
    def failing(self) -> int:
        return sum(not row.passed for row in self.rows)

    @property
    def outcome(self) -> str:
        if not self.failing:
            return many(len(self.rows), "case passes", "cases pass")
        return f"{self.failing} of {many(len(self.rows), 'case')} {'fails' if self.failing == 1 else 'fail'}"

    @property
    def worst(self) -> CaseRow | None:
        known = [row for row in self.rows if row.used is not None]
        return max(known, key=lambda row: row.used or 0.0) if known else None


@dataclass(frozen=True)
class FileRow:
    path: str
    size: str
    share: float


MEANINGS: Mapping[str, str] = {
    FIDELITY: "Compile fidelity asks whether the compiled graph computes what PyTorch computes with the very same weights, "
    "the engine in its most exact mode: any difference beyond rounding is a defect.",
    "quantisation loss": "Quantisation loss is what storing the weights in fewer bits costs against the original weights: "
    "a price, held to a budget.",
    "runtime loss": "Runtime loss is what the engine's faster settings cost (cache precision, dynamic quantisation, chunks) "
    "as load runs it, against the same artifact in its most exact mode: a price, held to a budget.",
}


def case_rows(manifest: Manifest, evidence: Evidence) -> list[CaseRow]:
    """Every case measured, then those that only the manifest knows. A case passes where both say so."""
    failed = {(case.name, case.question) for case in manifest.validation.cases if not case.passed}
    rows = [_measured(case, (case.name, case.question) in failed) for case in evidence.cases]
    seen = {(case.name, case.question) for case in evidence.cases}
    for case in manifest.validation.cases:
        if (case.name, case.question) not in seen:
            rows.append(CaseRow(case.name, case.question, case.passed, _cells(case.figures), None, "", ()))
    return rows


def questions(rows: Iterable[CaseRow]) -> list[Question]:
    cases = list(rows)
    return [
        Question(name, colour, MEANINGS[name], tuple(row for row in cases if row.question == name))
        for name, colour in QUESTIONS.items()
    ]


def floor_rows(evidence: Evidence) -> list[tuple[str, tuple[str, ...]]]:
    """The floors in the columns of the cases."""
    floors = (("float32 floor", evidence.floor), ("bfloat16 floor", evidence.floor_bf16))
    return [(name, _cells(summary(floor))) for name, floor in floors if floor is not None]


def summary(figures: Figures) -> dict[str, float]:
    """As `Figures.summary`, and nothing for a case that measured no position."""
    return figures.summary() if len(figures.positions) else {}


def _measured(case: CaseEvidence, failed: bool) -> CaseRow:
    figures = summary(case.figures)
    decisive = figures.get("logit_error_max" if case.question == FIDELITY else "kl_mean")
    used = decisive / case.limit if decisive is not None and 0 < case.limit < math.inf else None
    what = "logit error" if case.question == FIDELITY else "mean KL"
    said = "" if decisive is None else f"{what} {number(decisive)} of {number(case.limit)} allowed"
    passed = not case.reasons and not failed
    return CaseRow(case.name, case.question, passed, _cells(figures), used, said, case.reasons, case.notes)


def _cells(figures: Mapping[str, float]) -> tuple[str, ...]:
    """positions, mean KL, max KL, max logit error, top-1 agreement, near-ties of the tokens that changed"""
    count, agreement = figures.get("positions"), figures.get("top1_agreement")
    near, ties = figures.get("near_ties"), "–"
    if count is not None and agreement is not None and near is not None:
        changed = round(count * (1 - agreement))
        ties = f"{near:.0f} of {changed}" if changed else "–"
    known = [figures.get(name) for name in ("kl_mean", "kl_max", "logit_error_max")]
    return (
        "–" if count is None else f"{count:,.0f}",
        *("–" if figure is None else number(figure) for figure in known),
        "–" if agreement is None else share(agreement),
        ties,
    )


def windows(manifest: Manifest) -> str:
    """full attention in every layer; window of 4,096 tokens in 16 layers, full attention in 16 layers"""
    all_layers = manifest.model.windows
    distinct = sorted(set(all_layers), reverse=True)
    names = {window: f"window of {window:,} tokens" if window else "full attention" for window in distinct}
    if len(distinct) <= 1:
        return f"{names[distinct[0]]} in every layer" if distinct else "no layer"
    return ", ".join(f"{names[window]} in {many(all_layers.count(window), 'layer')}" for window in distinct)


def facts(manifest: Manifest) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headed lists of name and value: what was compiled, for what, and what the compiled graph was found to be."""
    asked = {name: found for name, found in manifest.target.structure.items() if name != MIXED}  # that has a figure
    structure = sorted((name.replace("_", " "), value(found)) for name, found in asked.items())
    return [
        ("Model", [*_model(manifest.source, manifest.model), ("window", windows(manifest))]),
        ("Compiled for", _target(manifest)),
        ("The compiled graph", structure or [("structure", "was not asked")]),
    ]


def _model(source: Source, model: ModelInfo) -> list[tuple[str, str]]:
    where = f"{source.repo or 'a repository'} at {source.commit or 'an unknown commit'}" if source.kind == "hub" else "a folder"
    return [
        ("architecture", f"{source.title}, family {source.family}"),
        ("source", where),
        ("sha256 of the checkpoint", source.sha256),
        *([("its weights came as", source.quantised)] if source.quantised else []),
        *([("sha256 of the adapter merged", source.adapter)] if source.adapter else []),
        ("layers", f"{model.layers}, hidden size {model.hidden_size:,}"),
        ("attention", f"{model.query_heads} query and {model.key_value_heads} key/value heads of {model.head_size}"),
        ("vocabulary", f"{model.vocab_size:,} tokens"),
        ("positions", f"{model.max_positions:,} trained for"),
    ]


def _target(manifest: Manifest) -> list[tuple[str, str]]:
    target = manifest.target
    return [
        ("engine", f"{target.backend} on {target.device}"),
        ("weights", target.weights),
        *([("calibrated with", target.options["calibrate"])] if "calibrate" in target.options else []),
        ("run by load as", "; ".join(_configuration(one.name, one.options) for one in manifest.configurations) or "nothing"),
        *sorted((f"{name} version", version) for name, version in target.versions.items()),
        ("alize version", manifest.alize),
    ]


def file_rows(sizes: Mapping[str, int]) -> list[FileRow]:
    """Largest first."""
    total = max(sum(sizes.values()), 1)
    order = sorted(sizes.items(), key=lambda entry: (-entry[1], entry[0]))
    return [FileRow(path, byte_count(size), round(size / total * 100, 1)) for path, size in order]


def _configuration(name: str, options: Mapping[str, object]) -> str:
    settings = ", ".join(f"{key} = {value(option)}" for key, option in sorted(options.items()))
    return f"{name} ({settings})" if settings else name
