"""Decoding and cold start, C++ against Python's Session (and openvino-genai where it is installed), alternating in one run.

    python benchmarks/cpp/compare.py DECODE ARTIFACT [--rounds N] [--genai PYTHON]

DECODE is the program of this folder. Each measurement is a process of its own; of each figure the best of N rounds is printed,
since what the machine's other work adds is not ours. The prompt is appended in every timed run, in all of them alike.
"""

import argparse
import json
import subprocess
import sys

PROMPT, NEW = "32", "64"

PYTHON = """
import json, resource, sys, time
began = time.perf_counter()
from pathlib import Path
from alize.runtimes import GenerationOptions, generate, load
model = load(Path(sys.argv[1]))
loaded = time.perf_counter() - began
prompt = [(7 * i + 11) % model.info.vocab_size for i in range(int(sys.argv[2]))]
first = 0.0
def run():
    global first
    with model.session() as session:
        for _ in generate(session, [prompt], GenerationOptions(max_new_tokens=int(sys.argv[3]))):
            first = first or time.perf_counter() - began
run()
started = time.perf_counter()
run()
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rate = int(sys.argv[3]) / seconds
print(json.dumps({"load_seconds": loaded, "first_token_seconds": first, "tokens_per_second": rate, "peak_mb": peak}))
"""

GENAI = """
import json, sys, time
import numpy as np, openvino, openvino_genai
began = time.perf_counter()
pipeline = openvino_genai.LLMPipeline(sys.argv[1], "CPU", INFERENCE_PRECISION_HINT="f32", KV_CACHE_PRECISION="f16")
loaded = time.perf_counter() - began
prompt = openvino.Tensor(np.array([[7 * i + 11 for i in range(int(sys.argv[2]))]], np.int64))
config = openvino_genai.GenerationConfig(max_new_tokens=int(sys.argv[3]), ignore_eos=True)
pipeline.generate(prompt, config)
started = time.perf_counter()
pipeline.generate(prompt, config)
print(json.dumps({"load_seconds": loaded, "tokens_per_second": int(sys.argv[3]) / (time.perf_counter() - started)}))
"""


def measure(command: list[str]) -> dict[str, float]:
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decode")
    parser.add_argument("artifact")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--genai", help="a python that has openvino-genai")
    options = parser.parse_args()
    size = [options.artifact, PROMPT, NEW]
    commands = {
        "C++": [options.decode, *size, "1"],
        "Python": [sys.executable, "-c", PYTHON, *size],
        "C++, 8 parallel sessions": [options.decode, *size, "8"],
    }
    if options.genai:
        commands["openvino-genai"] = [options.genai, "-c", GENAI, *size]
    best: dict[str, dict[str, float]] = {name: {} for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            for figure, value in measure(command).items():
                choose = max if figure == "tokens_per_second" else min
                best[name][figure] = choose(best[name].get(figure, value), value)
    for name, figures in best.items():
        print(f"{name}: " + ", ".join(f"{figure} {value:.2f}" for figure, value in figures.items()))


if __name__ == "__main__":
    main()
