"""openvino-genai over long prompts, in an environment that has it: python -m benchmarks.subjects.endless_genai FOLDER TOKENS...

For each number of tokens: a prompt of so many less STRETCH, and STRETCH that it writes; the seconds of each of these and what the
process holds then.
"""

import json
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai

STRETCH = 200


class Clock(genai.StreamerBase):
    def __init__(self) -> None:
        super().__init__()
        self.marks: list[float] = []
        self.memory = 0.0

    def write(self, _token: object) -> genai.StreamingStatus:
        self.marks.append(time.perf_counter())
        if len(self.marks) == STRETCH:
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            self.memory = next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon"))
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
        print(json.dumps({"tokens": size, "seconds_a_token": round(each, 5), "anonymous_mb": round(clock.memory, 1)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
