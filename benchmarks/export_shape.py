"""Exports a graph of Mistral-7B's shape, without weights, and prints what it took as one line of JSON.

    python benchmarks/export_shape.py [--layers 32] [--limits]

seconds: wall time of `export_graph`, imports not counted; import_seconds: the imports.   cpu_seconds: of both together.
peak_mib: the process's peak resident memory, everything included.   With --limits the exit code is 1 when an export takes 60 s
or 700 MB and more.
"""

import argparse
import json
import os
import resource
import sys
import time

SECONDS, MEGABYTES = 60, 700


def config(layers: int) -> dict[str, object]:
    """config.json of mistralai/Mistral-7B-v0.1."""
    return {
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    }


def measure(layers: int) -> dict[str, float]:
    """Exports once, in this process."""
    start = time.perf_counter()
    from alize.export.hub import export_graph

    imported = time.perf_counter()
    model = export_graph(config(layers))
    exported = time.perf_counter()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "layers": layers,
        "nodes": model.graph.num_nodes(),
        "seconds": round(exported - imported, 2),
        "import_seconds": round(imported - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--limits", action="store_true", help=f"fail from {SECONDS} s or {MEGABYTES} MB on")
    arguments = parser.parse_args()
    figures = measure(arguments.layers)
    print(json.dumps(figures))
    over = figures["seconds"] >= SECONDS or figures["peak_mib"] * 1.048576 >= MEGABYTES
    return int(arguments.limits and over)


if __name__ == "__main__":
    sys.exit(main())
