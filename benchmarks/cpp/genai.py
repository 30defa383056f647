"""openvino-genai, measured as decode.cpp measures libalize, in an environment that has it:

python -m benchmarks.cpp.genai ARTIFACT PROPERTIES cold PROMPT | serve          PROPERTIES: JSON
"""

import json
import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.cpp.process import TokenClock, memory


class Streamer(genai.StreamerBase):  # type: ignore[misc]
    """Is told of every token as soon as it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = TokenClock()

    def write(self, _token: object) -> genai.StreamingStatus:
        self.clock.token()
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


def decode(pipeline: genai.LLMPipeline, size: int, count: int) -> dict[str, float]:
    """Of one of the tokens behind the first one: seconds that pass, and seconds that all threads compute."""
    ids = ov.Tensor(np.array([[7 * i + 11 for i in range(size)]], np.int64))
    inputs = genai.TokenizedInputs(ids, ov.Tensor(np.ones((1, size), np.int64)))
    config = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False, apply_chat_template=False)
    streamer = Streamer()
    pipeline.generate(inputs, config, streamer)
    return streamer.clock.each()


def main(artifact: str, properties: str, *what: str) -> None:
    began = time.perf_counter()
    pipeline = genai.LLMPipeline(artifact, "CPU", **json.loads(properties))
    loaded = time.perf_counter() - began
    if what[0] == "cold":
        decode(pipeline, int(what[1]), 1)
        say(load_seconds=loaded)
        return
    for line in sys.stdin:
        size, count, sessions = map(int, line.split())
        assert sessions == 1, "LLMPipeline has one state"
        started = time.perf_counter()
        each = decode(pipeline, size, count)
        say(**each, tokens_per_second=count / (time.perf_counter() - started))


def say(**figures: float) -> None:
    print(json.dumps(figures | memory()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
