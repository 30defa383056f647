"""An artifact in words, from its manifest alone."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alize.artifact import Manifest
from alize.artifact.state import TUNED
from alize.errors import ValidationFailed
from alize.progress import byte_count

if TYPE_CHECKING:
    from alize.runtimes.tuning import Tuned

__all__ = ["describe", "describe_report", "describe_tuned", "plain", "verdict_code", "verdict_line"]

_TELLING = ("kl_max", "logit_error_max", "top1_agreement")


def plain(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON values, as manifest.json has them."""
    return dataclasses.asdict(manifest)


def verdict_line(folder: Path, manifest: Manifest) -> str:
    """One line: what it is and whether it was proven."""
    target = manifest.target
    verdict = f"{manifest.validation.verdict} ({manifest.validation.level})"
    return f"{folder}: {verdict}, {target.backend} {target.device} {target.weights}, digest {manifest.digest[:12]}"


def verdict_code(report: Mapping[str, Any]) -> int:
    """Exit code of a validation; says on stderr what is wrong with one that is no pass."""
    if report["verdict"] == "pass":
        return 0
    reasons = [*report.get("findings", ()), *report.get("left_out", ())]
    shown = reasons[:2] + ([f"and {len(reasons) - 2} more"] if len(reasons) > 2 else [])
    why = f" ({'; '.join(shown)})" if shown else ""
    remedy = "raise --validation-budget" if report["verdict"] == "partial" else "rebuild it"
    print(f"alize: error: the verdict is {report['verdict']}{why}: load refuses this artifact, {remedy}", file=sys.stderr)
    return ValidationFailed.exit_code


def describe(folder: Path, manifest: Manifest) -> list[str]:
    """What `alize inspect` prints."""
    sizes = [entry.size for entry in manifest.files]
    lines = _columns(
        [
            ("artifact", str(folder)),
            ("digest", manifest.digest),
            ("source", _source(manifest)),
            ("model", _model(manifest)),
            ("target", _target(manifest)),
            ("configurations", "; ".join(_configuration(one.name, one.options) for one in manifest.configurations) or "none"),
            ("size", f"{byte_count(sum(sizes))} in {len(sizes)} files"),
            ("made by", f"alize {manifest.alize}: {manifest.rebuild}"),
        ]
    )
    lines += ["", *describe_report(dataclasses.asdict(manifest.validation)), "", "files"]
    files = [(f"  {entry.path}", byte_count(entry.size), entry.sha256[:12]) for entry in manifest.files]
    files += [(f"  {path}", "", "not sealed") for path in manifest.unsealed]
    return lines + _columns(files)


def describe_report(report: Mapping[str, Any]) -> list[str]:
    """A validation (the manifest's, or what `alize validate` measured) as lines: verdict, cases, figures."""
    level = f" ({report['level']})" if report.get("level") else ""
    lines = _columns([("verdict", f"{report['verdict']}{level}")])
    lines += [f"left out: {what}" for what in report.get("left_out", ())]
    lines += [f"finding: {what}" for what in report.get("findings", ())]
    cases = [
        (f"  {case['name']}", case["question"], "pass" if case["passed"] else "FAIL", _figures(case["figures"]))
        for case in report.get("cases", ())
    ]
    lines += _columns(cases)
    return lines + _columns([(f"  {name}", _figures(figures)) for name, figures in report.get("figures", {}).items()])


def describe_tuned(found: "Tuned") -> list[str]:
    """What `alize tune` prints: every candidate, and what `load` runs from now on."""
    rows = [("tried", "first token", "a token", "faster than the best so far")]
    for one in found.candidates:
        if one.timing is None:
            rows.append((one.changed, "", "", f"refused: {one.refused}"))
        else:
            first, each = f"{one.timing.first_token_seconds:.3f} s", f"{1000 * one.timing.token_seconds:.2f} ms"
            rows.append((one.changed, first, each, f"{one.timing.speed:.2f}"))
    chosen = _configuration(found.configuration.name, found.configuration.options)
    if found.kept:
        return [*_columns(rows), "", f"{found.gain:.2f} times faster: load runs {chosen} on this device from now on"]
    if found.configuration.name == TUNED:
        return [
            *_columns(rows),
            "",
            f"{found.gain:.2f} times faster, and not kept (the state folder cannot be written): {chosen}",
        ]
    return [*_columns(rows), "", f"nothing was faster by enough: load runs {chosen}, as it was sealed"]


def _source(manifest: Manifest) -> str:
    source = manifest.source
    where = f"{source.repo} at {source.commit}" if source.kind == "hub" else "a folder"
    quantised = f", quantised as {source.quantised}" if source.quantised else ""
    adapter = f", merged with the adapter {source.adapter[:12]}" if source.adapter else ""
    return f"{where}, {source.title}, sha256 {source.sha256[:12]}{quantised}{adapter}"


def _model(manifest: Manifest) -> str:
    model = manifest.model
    windows = sorted(set(model.windows))
    window = "full attention" if windows == [0] else "window " + ", ".join(str(one) if one else "none" for one in windows)
    heads = f"{model.query_heads}/{model.key_value_heads} heads of {model.head_size}"
    return f"{model.layers} layers, {heads}, hidden {model.hidden_size}, vocabulary {model.vocab_size}, {window}"


def _target(manifest: Manifest) -> str:
    target = manifest.target
    versions = ", ".join(f"{name} {version}" for name, version in sorted(target.versions.items()))
    calibrated = f" calibrated with {target.options['calibrate']}" if "calibrate" in target.options else ""
    return f"{target.backend} on {target.device}, {target.weights} weights{calibrated} ({versions})"


def _configuration(name: str, options: dict[str, str | int | bool]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return f"{name} ({settings})" if settings else name


def _figures(figures: dict[str, float]) -> str:
    """The telling ones where they are there, else all: a line has to fit a terminal, and --json has the rest."""
    names = [name for name in _TELLING if name in figures] or sorted(figures)
    return ", ".join(f"{name} {figures[name]:.4g}" for name in names)


def _columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows with each column but the last as wide as its widest cell."""
    table = list(rows)
    if not table:
        return []
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    padded = [[cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)] for row in table]
    return ["  ".join(row).rstrip() for row in padded]
