"""Bars of every model's subjects, with quartiles: decoding with its floor, first tokens, cold starts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["write_plots"]

COLOURS = {
    "alize, OpenVINO": "#0b7a75",
    "openvino-genai": "#7fa8c9",
    "openvino-genai, alize's artifact": "#b9cfe0",
    "openvino-genai, CACHE_DIR": "#d5e2ec",
    "llama.cpp": "#d9a441",
    "alize, ONNX Runtime": "#3aa39d",
    "onnxruntime-genai": "#b58db6",
    "onnxruntime-genai, mobius-onnx": "#d8c3d9",
}
Result = Mapping[str, Any]


def write_plots(results: Mapping[str, Result], folder: Path) -> None:
    if not results:
        return
    _draw(results, folder / "bench-decode.svg", "decode, tokens/s", lambda result: result["decode_tokens_per_second"], floor=True)
    lengths = list(dict.fromkeys(length for result in results.values() for length in result["first_token_seconds"]))
    for length in lengths:
        having = {name: result for name, result in results.items() if length in result["first_token_seconds"]}
        file = folder / f"bench-first-token-{length}.svg"
        _draw(having, file, f"first token after {length}, s", lambda result, length=length: result["first_token_seconds"][length])
    _draw(results, folder / "bench-cold.svg", "cold start, later, s", lambda result: result["cold_start_seconds"]["later"])


def _draw(
    results: Mapping[str, Result], file: Path, title: str, figures: Callable[[Result], Any], *, floor: bool = False
) -> None:
    """A panel for each model: their scales differ."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "alize", "font.size": 8, "font.family": "sans-serif"}):
        columns = min(len(results), 3)
        rows = -(-len(results) // columns)
        figure = Figure(figsize=(3.6 * columns, 1.9 * rows + 0.4), layout="constrained")
        figure.suptitle(title, fontsize=10)
        panels = figure.subplots(rows, columns, squeeze=False).flat
        subjects = [subject for subject in COLOURS if any(subject in figures(result) for result in results.values())]
        for number, (axes, (name, result)) in enumerate(zip(panels, results.items(), strict=False)):
            _panel(axes, subjects, figures(result), labelled=number % columns == 0)
            axes.set_title(name, fontsize=8.5, loc="left")
            if floor:
                _mark_floor(axes, result)
        for axes in list(figure.axes)[len(results) :]:
            axes.set_visible(False)
        figure.savefig(file, metadata={"Date": None})
    # matplotlib ends lines with blanks
    file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")


def _panel(axes: Any, subjects: list[str], found: Mapping[str, Mapping[str, float]], *, labelled: bool) -> None:
    """One bar a subject, none for those that this model has no figure of."""
    there = [subject for subject in subjects if subject in found]
    middles = [found[subject]["median"] for subject in there]
    # of two runs a quartile may lie beyond the median
    low = [max(found[subject]["median"] - found[subject]["quartile_1"], 0) for subject in there]
    high = [max(found[subject]["quartile_3"] - found[subject]["median"], 0) for subject in there]
    places = [subjects.index(subject) for subject in there]
    axes.barh(places, middles, xerr=[low, high], color=[COLOURS[subject] for subject in there], ecolor="#444444", height=0.7)
    for place, middle, more in zip(places, middles, high, strict=True):
        axes.text(middle + more, place, f" {middle:.3g}", va="center", color="#111111")
    axes.set_xlim(0, max((middle + more for middle, more in zip(middles, high, strict=True)), default=1) * 1.2)
    axes.set_yticks(range(len(subjects)), subjects if labelled else [])
    axes.set_ylim(len(subjects) - 0.5, -0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _mark_floor(axes: Any, result: Result) -> None:
    bound = result["bandwidth_gb_s"]["median"] * 1e9 / sum(result["floor"].values())
    axes.axvline(bound, color="#444444", linestyle=":", linewidth=1)
    axes.set_xlim(0, max(axes.get_xlim()[1], bound * 1.05))
    axes.set_xlabel(f"dotted: all of the memory bandwidth, {bound:.0f}", fontsize=7)
