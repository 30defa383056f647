"""Python's Session as a subject: python -m benchmarks.subjects.alize_session ARTIFACT cold PROMPT | serve"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alize.runtimes import GenerationOptions, Model, generate, load
from benchmarks.subjects.process import TokenClock, prompt_tokens, say


def decode(model: Model, size: int, count: int, seed: int) -> dict[str, float]:
    prompt = prompt_tokens(size, seed, model.info.vocab_size)
    clock = TokenClock()
    with model.session() as session:
        for _ in generate(session, [prompt], GenerationOptions(max_new_tokens=count)):
            clock.token()
        return clock.figures()


def cold(artifact: Path, size: int) -> None:
    began = time.perf_counter()
    with load(artifact) as model:
        loaded = time.perf_counter() - began
        say(load_seconds=loaded, **decode(model, size, 1, 0))


def serve(artifact: Path) -> None:
    with load(artifact) as model:
        for line in sys.stdin:
            size, count, sessions, seed = map(int, line.split())
            if sessions == 1:
                say(**decode(model, size, count, seed))
                continue
            started = time.perf_counter()
            with ThreadPoolExecutor(sessions) as pool:
                figures = list(
                    pool.map(lambda _, size=size, count=count, seed=seed: decode(model, size, count, seed), range(sessions))
                )
            together = {"tokens_per_second": sessions * count / (time.perf_counter() - started)}
            say(**figures[-1] | together)


if __name__ == "__main__":
    if sys.argv[2] == "cold":
        cold(Path(sys.argv[1]), int(sys.argv[3]))
    else:
        serve(Path(sys.argv[1]))
