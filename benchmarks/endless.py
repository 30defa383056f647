"""An endless session: 32,768 tokens through a windowed model. From the repository's root:

    python -m benchmarks.endless small-window [--peer .peers/openvino/bin/python]
        the demo model with a window of 256
    python -m benchmarks.endless wide-window
        two layers of Mistral-7B's shape, W = 4096, and a vocabulary of 1,024

Chunks of 512 tokens, and a thousand one by one at two places: behind the first filling of the window, and at the end. Measured in
a process of its own: seconds and anonymous memory along the session, and the logits of the last thousand, which are compared with
PyTorch's Session fed with the same tokens. openvino-genai, where there is a peer, opens the same files: each of its points is a
prompt of so many tokens and some that it writes. Keeps benchmarks/results/endless-NAME.json and .svg.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.compilers import compiler_for
from alize.models.checkpoint import Checkpoint
from alize.models.demo_checkpoint import cache_dir, make_demo_checkpoint
from benchmarks.make_checkpoint import SHAPES, write_checkpoint
from benchmarks.measuring import RESULTS, Lowered, summary, write_result
from benchmarks.subjects.process import memory

TOKENS, CHUNK, STRETCH = 32768, 512, 1000
PEER = Path(".peers/openvino/bin/python")
PEER_POINTS = (1024, 8192, 16384, TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description="An endless session.")
    parser.add_argument("name", choices=("small-window", "wide-window"))
    parser.add_argument("--peer", type=Path, default=PEER, help="a python that has openvino-genai")
    parser.add_argument("--work", type=Path, default=cache_dir() / "benchmarks")
    parser.add_argument("--subject", choices=("alize", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    checkpoint = _checkpoint(options.name, options.work)
    folder = options.work / f"endless-{options.name}"
    if options.subject:
        _subject(options.subject, checkpoint, folder, options.work)
        return
    tokenizer = _checkpoint("small-window", options.work)
    Lowered(checkpoint, "openvino", folder, weights="bf16")
    if not (folder / "openvino_tokenizer.xml").exists():
        compiler_for("openvino").companion.write(Checkpoint.open(tokenizer), folder)
    found = {subject: _run(subject, options) for subject in ("alize", "torch")}
    result = {"what": f"{TOKENS} tokens, chunks of {CHUNK}", **found["alize"], "against_torch": _compare(options)}
    if options.peer.exists():
        result["openvino-genai"] = _peer(options.peer, folder)
    write_result(f"endless-{options.name}", result)
    _plot(result, RESULTS / f"endless-{options.name}.svg")


def _checkpoint(name: str, work: Path) -> Path:
    if name == "small-window":
        folder = work / "demo-w256"
        if not folder.exists():
            make_demo_checkpoint(folder, window=256)
        return folder
    SHAPES["wide"] = SHAPES["mistral-7b"] | {"vocab_size": 1024}
    folder = work / "wide-2"
    return folder if folder.exists() else write_checkpoint("wide", folder, layers=2)


def _run(subject: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.endless", options.name, "--work", str(options.work), "--subject", subject]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    return found


def _steps(window: int) -> Iterator[tuple[int, bool]]:
    """Sizes of the appends, and whether each is one of a stretch of single tokens."""
    filled = window + CHUNK
    for count in (filled, TOKENS - filled - 2 * STRETCH):
        yield from ((min(CHUNK, count - at), False) for at in range(0, count, CHUNK))
        yield from [(1, True)] * STRETCH


def _subject(name: str, checkpoint: Path, folder: Path, work: Path) -> None:
    """Feeds the session; prints where it was, how long it took and what it held; keeps the last stretch's logits."""
    if name == "alize":
        lowered = Lowered(checkpoint, "openvino", folder, weights="bf16")
        session, info = lowered.session(), lowered.draft.model
    else:
        from alize.models import session as torch_backend
        from alize.runtimes.session import Session

        engine = torch_backend.open(checkpoint)
        info = torch_backend.model_info(engine.model.config)
        session = Session(engine.runner(1), info, batch=1, chunk=CHUNK, slack=max(CHUNK, *info.windows))
    tokens = np.random.default_rng(0).integers(0, info.vocab_size, (1, TOKENS))
    filled = max(info.windows) + CHUNK
    points, stretches = [], [list[float](), list[float]()]
    logits = np.lib.format.open_memmap(  # a file: what is kept to be compared is not the session's memory
        work / f"endless-{name}.npy", "w+", np.float32, (STRETCH, info.vocab_size)
    )
    for size, single in _steps(max(info.windows)):
        start = session.position
        began = time.perf_counter()
        last = session.append(tokens[:, start : start + size])
        seconds = time.perf_counter() - began
        if single:
            late = start >= TOKENS - STRETCH
            stretches[late].append(seconds)
            if late:
                logits[start - (TOKENS - STRETCH)] = last[0, 0]
        if not single or session.position in (filled + STRETCH, TOKENS):
            points.append([session.position, memory()["anonymous_mb"]])
    logits.flush()
    held = dict(points)
    print(
        json.dumps(
            {
                "window": max(info.windows),
                "anonymous_mb": points,
                "last / filled, memory": round(held[TOKENS] / held[filled + STRETCH], 4),
                "seconds_a_token": {"filled": summary(stretches[0]), "last": summary(stretches[1])},
                "last / filled, time": round(statistics.median(stretches[1]) / statistics.median(stretches[0]), 3),
            }
        )
    )


def _compare(options: argparse.Namespace) -> dict[str, float]:
    from alize.validate.measure import measure

    expected, found = (np.load(options.work / f"endless-{name}.npy") for name in ("torch", "alize"))
    positions: NDArray[np.int64] = np.arange(TOKENS - len(expected), TOKENS)
    return measure(expected, found, positions).summary()


def _peer(python: Path, folder: Path) -> list[dict[str, float]]:
    command = [str(python), "-m", "benchmarks.subjects.endless_genai", str(folder), *map(str, PEER_POINTS)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def _plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    positions, megabytes = zip(*result["anonymous_mb"], strict=True)
    axes.plot(positions, megabytes, label="alize")
    if "openvino-genai" in result:
        points = result["openvino-genai"]
        axes.plot([one["tokens"] for one in points], [one["anonymous_mb"] for one in points], "o--", label="openvino-genai")
    axes.set_xlabel("tokens in the session")
    axes.set_ylabel("anonymous memory, MB")
    axes.set_ylim(bottom=0)
    axes.axvline(result["window"], color="grey", linewidth=0.8, linestyle=":")
    axes.annotate(f"W = {result['window']}", (result["window"], 0), xytext=(4, 6), textcoords="offset points", fontsize=8)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main()
