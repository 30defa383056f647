"""openvino-genai over long prompts, in an environment that has it: python -m benchmarks.subjects.endless_genai FOLDER TOKENS...

For each number of tokens: a prompt of so many less STRETCH, and STRETCH that it writes; the seconds of each of these and what the
process holds then.
"""

import json
import random
import statistics
import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai

from benchmarks.subjects.process import memory

STRETCH = 200


class Clock(genai.StreamerBase):
    def __init__(self) -> None:
        super().__init__()
        self.marks: list[float] = []
        self.memory = 0.0

    def write(self, _token: object) -> genai.StreamingStatus:
        self.marks.append(time.perf_counter())
        if len(self.marks) == STRETCH:
            self.memory = memory()["anonymous_mb"]
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


def main(folder: str, *sizes: str) -> None:
    pipeline = genai.LLMPipeline(folder, "CPU")
    config = genai.GenerationConfig(max_new_tokens=STRETCH, ignore_eos=True, do_sample=False, apply_chat_template=False)
    for size in map(int, sizes):
        count = size - STRETCH
        tokens = np.array([[random.randrange(10, 1000) for _ in range(count)]], np.int64)
        clock = Clock()
        pipeline.generate(genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones((1, count), np.int64))), config, clock)
        each = statistics.median(np.diff(clock.marks))
        print(json.dumps({"tokens": size, "seconds_a_token": round(each, 5), "anonymous_mb": clock.memory}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
