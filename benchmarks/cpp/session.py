"""Python's Session, measured as decode.cpp measures libalize: python -m benchmarks.cpp.session ARTIFACT cold PROMPT | serve"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alize.runtimes import GenerationOptions, Model, generate, load
from benchmarks.cpp.process import TokenClock, memory


def decode(model: Model, size: int, count: int) -> dict[str, float]:
    """Of one of the tokens behind the first one: seconds that pass, and seconds that all threads compute."""
    prompt = [(7 * i + 11) % model.info.vocab_size for i in range(size)]
    clock = TokenClock()
    with model.session() as session:
        for _ in generate(session, [prompt], GenerationOptions(max_new_tokens=count)):
            clock.token()
    return clock.each()


def cold(artifact: Path, size: int) -> None:
    began = time.perf_counter()
    with load(artifact) as model:
        loaded = time.perf_counter() - began
        decode(model, size, 1)
        say(load_seconds=loaded)


def serve(artifact: Path) -> None:
    with load(artifact) as model:
        for line in sys.stdin:
            size, count, sessions = map(int, line.split())
            started = time.perf_counter()
            each: dict[str, float] = {}
            if sessions == 1:
                each = decode(model, size, count)
            else:
                with ThreadPoolExecutor(sessions) as pool:
                    list(pool.map(lambda _, size=size, count=count: decode(model, size, count), range(sessions)))
            say(**each, tokens_per_second=sessions * count / (time.perf_counter() - started))


def say(**figures: float) -> None:
    print(json.dumps(figures | memory()), flush=True)


if __name__ == "__main__":
    if sys.argv[2] == "cold":
        cold(Path(sys.argv[1]), int(sys.argv[3]))
    else:
        serve(Path(sys.argv[1]))
