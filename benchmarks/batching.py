"""Eight requests in a continuous batch against one session alone. From the repository's root:

    python -m benchmarks.batching ARTIFACT [--rows 8] [--rounds 9] [--name batching]

Prompts of unequal lengths, 64 tokens each; tokens a second in all, alternately in one process, prompts included. Then the same
requests behind a prefix of 512 tokens, read once and shared, against each reading it by itself: seconds until all have a first
token. Keeps benchmarks/results/NAME.json.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alize.runtimes import ContinuousBatch, GenerationOptions, Model, generate, load
from benchmarks.measuring import alternate, write_result

NEW, PREFIX = 64, 512
SIZES = (16, 40, 25, 60, 33, 18, 70, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description="A continuous batch against one session.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="batching", help="of the file in benchmarks/results")
    options = parser.parse_args()
    with load(options.artifact) as model:
        draw = np.random.default_rng(0)
        prompts = [draw.integers(0, model.info.vocab_size, SIZES[row % len(SIZES)]) for row in range(options.rows)]
        prefix = draw.integers(0, model.info.vocab_size, PREFIX)
        rates = {"one session": lambda: _alone(model, prompts[0]), "batch": lambda: _together(model, prompts)}
        firsts = {"each reads it": lambda: _unshared(model, prefix, prompts), "shared": lambda: _shared(model, prefix, prompts)}
        result = {
            "what": f"{options.rows} requests, {NEW} tokens each; weights {model.manifest.target.weights}",
            "tokens_a_second": alternate(rates, rounds=options.rounds),
            f"seconds_to_first_tokens_behind_{PREFIX}": alternate(firsts, rounds=options.rounds),
        }
    write_result(options.name, result)


def _alone(model: Model, prompt: NDArray[np.int64]) -> float:
    began = time.perf_counter()
    with model.session() as session:
        count = sum(1 for _ in generate(session, prompt[None], GenerationOptions(max_new_tokens=NEW)))
    return count / (time.perf_counter() - began)


def _together(model: Model, prompts: list[NDArray[np.int64]]) -> float:
    began = time.perf_counter()
    with ContinuousBatch(model, rows=len(prompts)) as batch:
        for prompt in prompts:
            batch.submit(prompt, GenerationOptions(max_new_tokens=NEW))
        count = sum(len(step) for step in batch)
    return count / (time.perf_counter() - began)


def _unshared(model: Model, prefix: NDArray[np.int64], prompts: list[NDArray[np.int64]]) -> float:
    began = time.perf_counter()
    with ContinuousBatch(model, rows=len(prompts)) as batch:
        for prompt in prompts:
            batch.submit(np.concatenate([prefix, prompt]), GenerationOptions(max_new_tokens=1))
        for _ in batch:
            pass
    return time.perf_counter() - began


def _shared(model: Model, prefix: NDArray[np.int64], prompts: list[NDArray[np.int64]]) -> float:
    began = time.perf_counter()
    with model.session() as start, ContinuousBatch(model, rows=len(prompts)) as batch:
        start.append(prefix[None])
        for prompt in prompts:
            batch.submit(prompt, GenerationOptions(max_new_tokens=1), prefix=start)
        for _ in batch:
            pass
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
