"""What a mixture of experts costs. From the repository's root:

    python -m benchmarks.experts decode [--target openvino] [--weights fp32]
        the Mixtral twin against a dense model of the same active parameters: seconds a token
    python -m benchmarks.experts prefill [--weights fp32]
        256 tokens of the twin, against openvino-genai on optimum-intel's export of the same checkpoint
    python -m benchmarks.experts layer [--weights fp32]
        one layer of Mixtral-8x7B's size: 1, 32 and 256 tokens, and bytes read against those of the experts touched

All that is compared runs alternately in one run; medians and quartiles are printed and kept in benchmarks/results/. `prefill`
needs the environment that `make peers` makes in .peers/openvino. Checkpoints and graphs are kept in --work.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alize.models.demo_checkpoint import cache_dir, make_demo_checkpoint
from alize.optimize.quantisation import Quantisation
from benchmarks.make_checkpoint import SHAPES, write_checkpoint
from benchmarks.measuring import Lowered, alternate, bandwidth, pages_read, write_result
from benchmarks.subjects.process import Server

PEER = Path(".peers/openvino/bin/python")
PROMPT = 256
CHOSEN = "layers.0.experts"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a mixture of experts costs.")
    parser.add_argument("part", choices=("decode", "prefill", "layer"))
    parser.add_argument("--target", default="openvino")
    parser.add_argument("--weights", default="fp32")
    parser.add_argument("--experts", help="the form of the experts: apart or tiled (default: the target's own)")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--work", type=Path, default=cache_dir() / "benchmarks")
    options = parser.parse_args()
    chosen = {"experts": options.experts} if options.experts else {}
    bench = Bench(options.target, options.weights, chosen, options.work, options.rounds)
    result = {"decode": bench.decode, "prefill": bench.prefill, "layer": bench.layer}[options.part]()
    form = f"-{options.experts}" if options.experts else ""
    write_result(f"experts-{options.part}-{options.target}-{options.weights}{form}", result)


class Bench:
    def __init__(self, target: str, weights: str, options: dict[str, str], work: Path, rounds: int) -> None:
        self.target, self.weights, self.options, self.work, self.rounds = target, weights, options, work, rounds

    def decode(self) -> dict[str, Any]:
        """Seconds for one token after 64, random tokens, so that other experts are chosen every time."""
        subjects = {"twin": self._decoding(self._twin()), "dense": self._decoding(self._random("demo-active"))}
        return {"what": "seconds a decoded token", **alternate(subjects, rounds=4 * self.rounds)}

    def prefill(self) -> dict[str, Any]:
        """Seconds to the logits of the first new token after 256."""
        lowered = self._twin()
        rival = Rival(self._rival_export(), {"INFERENCE_PRECISION_HINT": "f32"})
        default = Rival(self._rival_export(), {})
        subjects = {
            "openvino-genai, its defaults": default.prefill,
            "openvino-genai, f32 arithmetic": rival.prefill,
            "alize": self._prefilling(lowered, PROMPT),
        }
        for measure in subjects.values():
            measure()  # packs weights
        return {"what": f"seconds to the first token after {PROMPT}", **alternate(subjects, rounds=self.rounds)}

    def layer(self) -> dict[str, Any]:
        """One layer of Mixtral-8x7B's size, its attention and a head of 1024 words included, and what a step reads."""
        SHAPES["layer"] = SHAPES["mixtral-8x7b"] | {"vocab_size": 1024}
        lowered = self._lowered(self._random("layer", layers=1), taps=(CHOSEN,))
        result: dict[str, Any] = {"what": "seconds a step of one layer", "bandwidth_gb_s": round(bandwidth() / 1e9, 1)}
        for count in (1, 32, PROMPT):
            measure = self._prefilling(lowered, count)
            measure()
            timed = alternate({"step": measure}, rounds=self.rounds)["step"]
            result[f"{count} tokens"] = timed | self._read(lowered, count)
        return result

    def _read(self, lowered: Lowered, count: int) -> dict[str, float]:
        """Of one step behind nothing: the experts that its tokens chose, MB of their weights, MB of all pages that it touched."""
        runner = lowered.engine.runner(1)
        session, tokens = lowered.session(runner), lowered.tokens(count, 0)
        read = pages_read(lambda: session.append(tokens))
        experts = len(np.unique(runner.taps.row(0, CHOSEN)))
        return {
            "experts": experts,
            "experts_mb": round(experts * self._expert_bytes(SHAPES["layer"]) / 1e6),
            "read_mb": round(read / 1e6),
        }

    def _expert_bytes(self, shape: dict[str, Any]) -> int:
        """Of one expert of a layer, as it is stored."""
        hidden, inner = shape["hidden_size"], shape["intermediate_size"]
        chosen = Quantisation.parse(self.weights)
        if chosen is None:
            return 3 * hidden * inner * {"fp32": 4, "fp16": 2, "bf16": 2}[self.weights]
        forms = [(size, chosen.form("weight", size)) for size in ((inner, hidden), (inner, hidden), (hidden, inner))]
        return sum(form.stored_bytes(size) for size, form in forms if form is not None)

    def _decoding(self, checkpoint: Path) -> Callable[[], float]:
        lowered = self._lowered(checkpoint)
        session = lowered.session()
        session.append(lowered.tokens(64, 0))
        count = 0

        def step() -> float:
            nonlocal count
            count += 1
            if count % 64 == 0:
                session.rewind(63)
            tokens = lowered.tokens(1, count)
            start = time.perf_counter()
            session.append(tokens)
            return time.perf_counter() - start

        for _ in range(8):
            step()
        return step

    def _prefilling(self, lowered: Lowered | Path, size: int) -> Callable[[], float]:
        opened = self._lowered(lowered) if isinstance(lowered, Path) else lowered
        session = opened.session()
        count = 0

        def step() -> float:
            nonlocal count
            count += 1
            session.reset()
            tokens = opened.tokens(size, count)
            start = time.perf_counter()
            session.append(tokens)
            return time.perf_counter() - start

        return step

    def _lowered(self, checkpoint: Path, *, taps: Sequence[str] = ()) -> Lowered:
        form = "-".join(self.options.values())
        folder = self.work / f"{checkpoint.name}-{self.target}-{self.weights}-{form}"
        options = self.options if "num_local_experts" in json.loads((checkpoint / "config.json").read_text()) else {}
        return Lowered(checkpoint, self.target, folder, weights=self.weights, options=options, taps=taps)

    def _twin(self) -> Path:
        return make_demo_checkpoint(self.work / "twin", mixtral=True)

    def _random(self, shape: str, *, layers: int | None = None) -> Path:
        folder = self.work / shape
        return folder if folder.exists() else write_checkpoint(shape, folder, layers=layers)

    def _rival_export(self) -> Path:
        folder = self.work / f"optimum-intel-{self.weights}"
        if not folder.exists():
            kind = ["--task", "text-generation-with-past", "--weight-format", self.weights]
            command = [PEER, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", self._twin(), *kind, folder]
            subprocess.run([str(word) for word in command], check=True)
        return folder


class Rival:
    """openvino-genai in a process of its own, which waits between its turns."""

    def __init__(self, folder: Path, properties: dict[str, str]) -> None:
        command = [str(PEER), "-m", "benchmarks.subjects.openvino_genai", str(folder), json.dumps(properties), "serve"]
        self._server = Server(command, os.environ | {"PYTHONPATH": "."})
        self._seed = 0

    def prefill(self) -> float:
        """Seconds to the first token after PROMPT that it has not seen: it keeps the caches of those it has."""
        self._seed += 1
        return self._server.ask(PROMPT, 1, seed=self._seed)["first_token_seconds"]


if __name__ == "__main__":
    main()
