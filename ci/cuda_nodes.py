"""Where ONNX Runtime ran each node of an artifact for CUDA: a prompt of 16 tokens and a decode step, by its profiler.

    python ci/cuda_nodes.py ARTIFACT [PROVIDER]

Prints how many nodes of each kind ran where. Exit code 1 where attention or a product ran anywhere but on PROVIDER
(CUDAExecutionProvider): a kind that it has no kernel for goes to the CPU in silence, and its tensors over the bus.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HEAVY = {"GroupQueryAttention", "MatMul", "FusedMatMul", "MatMulNBits", "RMSNormalization", "RotaryEmbedding"}


def run(session: Any) -> None:
    given = {value.name: value.shape for value in session.get_inputs()}
    caches = {name: np.zeros((1, shape[1], 0, shape[3]), np.float16) for name, shape in given.items() if len(shape) == 4}
    for start, stop in ((0, 16), (16, 17)):
        feeds = {
            "input_ids": np.full((1, stop - start), 5, np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
            "attention_mask": np.ones((1, stop), np.int64),
        }
        found = session.run([name.replace("past_key_values", "present") for name in caches], feeds | caches)
        caches = dict(zip(caches, found, strict=True))


def main(folder: Path, provider: str) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(folder / "model.onnx", settings, providers=[provider, "CPUExecutionProvider"])
        run(session)
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"] for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    where = Counter((event["op_name"], event["provider"]) for event in ran)
    for (kind, place), count in sorted(where.items()):
        print(f"{place:24}{kind:28}{count}")
    wrong = sorted({kind for kind, place in where if kind in HEAVY and place != provider})
    if wrong:
        print(f"ran elsewhere than on {provider}: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "CUDAExecutionProvider"))
