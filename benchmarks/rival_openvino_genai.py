"""openvino-genai as a subject of a benchmark: python rival_openvino_genai.py FOLDER PROPERTIES, in an environment that has it.

For every line with a number of tokens on stdin, it prints the seconds to the first token after so many random ones.
"""

import json
import random
import sys

import numpy as np
import openvino as ov
import openvino_genai as genai

folder, properties = sys.argv[1], json.loads(sys.argv[2])
pipeline = genai.LLMPipeline(folder, "CPU", **properties)
config = genai.GenerationConfig(max_new_tokens=1, min_new_tokens=1, do_sample=False, apply_chat_template=False)
for line in sys.stdin:
    count = int(line)
    tokens = np.array([[random.randrange(10, 40000) for _ in range(count)]], np.int64)
    inputs = genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones((1, count), np.int64)))
    seconds = pipeline.generate(inputs, config).perf_metrics.get_ttft().mean / 1000
    print(seconds, flush=True)
