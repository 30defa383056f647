"""Tokens a second, time to first token and memory of artifacts on an NVIDIA GPU, beside PyTorch on the same one. Run by ci/gpu.

    python benchmarks/gpu.py CHECKPOINT ARTIFACT... --output FOLDER

PyTorch runs transformers' model in float16, eager and compiled, both with a static cache. Writes FOLDER/gpu-NAME.json and .md.
Was never run: no machine that has both TensorRT and a GPU was at hand.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, DECODED, REPEATS = 256, 128, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("artifacts", type=Path, nargs="*")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    import torch

    rows = [of_artifact(path) for path in options.artifacts]
    for compiled in (False, True):
        rows.append(of_torch(options.checkpoint, compiled=compiled))
        gc.collect()  # or the next one's memory comes on top of it
        torch.cuda.empty_cache()
    gpu = torch.cuda.get_device_properties(0)
    found = {"gpu": gpu.name, "sm": 10 * gpu.major + gpu.minor, "torch": torch.__version__, "prompt": PROMPT, "rows": rows}
    name = f"gpu-{gpu.name.lower().replace(' ', '-')}"
    (options.output / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (options.output / f"{name}.md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def of_artifact(folder: Path) -> dict[str, Any]:
    """One artifact, as `load` runs it."""
    from alize.runtimes import load

    before, began = used(), time.perf_counter()
    with load(folder) as model, model.session() as session:
        loaded = time.perf_counter() - began
        vocabulary = model.info.vocab_size

        def run() -> tuple[float, float]:
            session.reset()
            return timed(lambda tokens: int(session.append(tokens)[0, 0].argmax()), vocabulary)

        record = json.loads((folder / "build-record.json").read_text(encoding="utf-8"))
        return measured(run) | {"name": folder.name, "load_s": loaded, "bytes": used() - before, "build": record}


def of_torch(checkpoint: Path, *, compiled: bool) -> dict[str, Any]:
    """transformers' model with a static cache."""
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    before = used()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float16).cuda().eval()
    forward = torch.compile(model.forward, mode="reduce-overhead") if compiled else model.forward
    cache = StaticCache(config=model.config, max_cache_len=PROMPT + DECODED)

    @torch.inference_mode()
    def run() -> tuple[float, float]:
        cache.reset()
        place = 0

        def append(tokens: Any) -> int:
            nonlocal place
            where = torch.arange(place, place + tokens.shape[1], device="cuda")
            place += tokens.shape[1]
            given = torch.from_numpy(tokens).cuda()
            logits = forward(given, past_key_values=cache, cache_position=where, use_cache=True).logits
            return int(logits[0, -1].argmax())

        return timed(append, model.config.vocab_size)

    return measured(run) | {"name": f"torch {'compiled' if compiled else 'eager'} fp16", "bytes": used() - before}


def timed(append: Callable[[Any], int], vocabulary: int) -> tuple[float, float]:
    """Seconds to the first token, and of each one after it. `append` waits for its answer."""
    tokens = np.random.default_rng(0).integers(3, vocabulary, (1, PROMPT))
    began = time.perf_counter()
    token = append(tokens)
    first = time.perf_counter()
    for _ in range(DECODED - 1):
        token = append(np.array([[token]]))
    return first - began, (time.perf_counter() - first) / (DECODED - 1)


def measured(run: Callable[[], tuple[float, float]]) -> dict[str, Any]:
    """Medians, behind one run that warms up."""
    run()
    found = [run() for _ in range(REPEATS)]
    first, step = (statistics.median(values) for values in zip(*found, strict=True))
    return {"first_token_s": first, "tokens_a_second": 1 / step}


def used() -> int:
    """Bytes of the GPU's memory that are taken, by anyone."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| what | tokens/s | first token of 256 | GPU memory |", "|---|---|---|---|"]
    for row in rows:
        first, size = f"{1e3 * row['first_token_s']:.0f} ms", f"{row['bytes'] / 1e9:.2f} GB"
        lines.append(f"| {row['name']} | {row['tokens_a_second']:.0f} | {first} | {size} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
