"""Markdown tables from the results that are kept, into benchmarks/results/bench.md and docs/benchmarks.md; plots beside them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.bench.models import MODELS
from benchmarks.measuring import RESULTS

__all__ = ["advantage", "model_tables", "write_tables"]

DOCS = RESULTS.parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- tables: python -m benchmarks.bench --tables writes them -->", "<!-- end of the tables -->"
# who is compared with whom: the same engine, and what users would pick instead of it
RIVALS = {
    "alize, OpenVINO": ("openvino-genai", "llama.cpp"),
    "alize, ONNX Runtime": ("onnxruntime-genai", "onnxruntime-genai, mobius-onnx"),
}

Result = Mapping[str, Any]


def write_tables(folder: Path = RESULTS) -> None:
    """Of every model that has a result in the folder."""
    from benchmarks.bench.plots import write_plots

    results = {name: json.loads(file.read_text()) for name in MODELS if (file := folder / f"bench-{name}.json").exists()}
    sections = [_machine(result) for result in list(results.values())[-1:]]
    text = "\n".join([*sections, *(line for name, result in results.items() for line in model_tables(name, result))])
    (folder / "bench.md").write_text(text + "\n", encoding="utf-8")
    write_plots(results, folder)
    if folder == RESULTS and DOCS.exists():
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def _machine(result: Result) -> str:
    """Of all results of a run."""
    machine = result["machine"]
    versions = {**machine["versions"], **result["rivals"]}
    return (
        f"Machine: {machine['processor']}; {machine['cores']} cores, of which {result['threads']} were used; {machine['system']}."
        f" Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
    )


def model_tables(name: str, result: Result) -> Iterator[str]:
    """The lines of one model's section: what was measured of each subject, then alize against its rivals."""
    speed, floor = result["bandwidth_gb_s"], result["floor"]
    subjects = list(result["memory_mb"])
    yield f"### {result['what']}: {result['weights']}"
    yield ""
    spread = f"{speed['quartile_1']:.1f} to {speed['quartile_3']:.1f}"
    yield (
        f"`bench-{name}.json`: {speed['median']:.1f} GB/s of memory bandwidth ({spread}) in {speed['runs']} rounds."
        f" A token reads {floor['weight_bytes'] / 1e6:.0f} MB of weights and {floor['cache_bytes'] / 1e6:.1f} MB of cache."
        f" Load average before {result['load_before']}."
    )
    yield ""
    yield f"| | {' | '.join(subjects)} |"
    yield "|---" * (len(subjects) + 1) + "|"
    for title, cells in _rows(result, subjects):
        yield f"| {title} | {' | '.join(cells)} |"
    yield ""
    yield from _against(result)
    for subject, symptom in result["failed"].items():
        yield f"- {subject}: {symptom}"
    if result["failed"]:
        yield ""


def _rows(result: Result, subjects: list[str]) -> Iterator[tuple[str, list[str]]]:
    decode, reached = result["decode_tokens_per_second"], result["fraction_of_floor"]
    yield "decode, tokens/s", [_spread(decode[name], 1) for name in subjects]
    yield "of the floor", [f"{reached[name]['median']:.0%}" for name in subjects]
    for length, found in result["first_token_seconds"].items():
        yield f"first token after {length}, s", [_spread(found[name], 3 if int(length) < 100 else 2) for name in subjects]
    cold = result["cold_start_seconds"]
    yield "cold start, first ever, s", [f"{cold['first'][name]:.1f}" for name in subjects]
    yield "cold start, later, s", [_spread(cold["later"][name], 2) for name in subjects]
    memory = result["memory_mb"]
    yield "resident, MB", [f"{memory[name]['rss_mb']:.0f}" for name in subjects]
    yield "of it anonymous, MB", [f"{memory[name]['anonymous_mb']:.0f}" for name in subjects]
    made = [result["prepared"].get(name) for name in subjects]
    yield "made in, s", [_made_in(one) if one else "" for one in made]
    yield "made with, MB at peak", [f"{max(step['peak_mb'] for step in one['steps']):.0f}" if one else "" for one in made]
    yield "on disk, MB", [f"{one['size_mb']:.0f}" if one else "" for one in made]


def _made_in(record: Result) -> str:
    seconds = f"{sum(step['seconds'] for step in record['steps']):.0f}"
    return f"{seconds}, {record['validate_seconds']:.0f} of it validating" if "validate_seconds" in record else seconds


def _spread(summary: Mapping[str, float], digits: int) -> str:
    low, high = (f"{summary[f'quartile_{number}']:.{digits}f}" for number in (1, 3))
    return f"{summary['median']:.{digits}f} ({low} to {high})"


def _against(result: Result) -> Iterator[str]:
    lines = []
    for ours, rivals in RIVALS.items():
        for rival in rivals:
            if ours in result["memory_mb"] and rival in result["memory_mb"]:
                times = [*result["first_token_seconds"].values(), result["cold_start_seconds"]["later"]]
                figures = [advantage(result["decode_tokens_per_second"], ours, rival)]
                figures += [1 / advantage(found, ours, rival) for found in times]
                lines.append(f"| {ours} / {rival} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    if not lines:
        return
    lengths = [f"first token after {length}" for length in result["first_token_seconds"]]
    yield f"| how many times as fast, median of the rounds | decode | {' | '.join(lengths)} | cold start, later |"
    yield "|---" * (len(lengths) + 3) + "|"
    yield from lines
    yield ""


def advantage(found: Mapping[str, Mapping[str, float]], one: str, other: str) -> float:
    """The median of one's paired ratio to the other, which the summary has one way round."""
    if f"{one} / {other}" in found:
        return found[f"{one} / {other}"]["median"]
    return 1 / found[f"{other} / {one}"]["median"]
