"""What rounding to integers costs: alize's and NNCF's, of one checkpoint, on one text, in one run.

    python benchmarks/quantisation_quality.py CHECKPOINT --rival .peers/openvino/bin/python

Every subject is judged the same way: its dequantised weights are put into the same PyTorch model in float32, so that nothing but
the integers counts. KL(float32 || subject) in nats and perplexity, over a text that no calibration has seen: entries of Ambrose
Bierce's The Devil's Dictionary (1911, in the public domain). NNCF is run through optimum-intel, by the Python given as --rival.

A mix (mixed-b5-g64) is compared with others of the same size: int8 given to matrices at random, and to the first and last layers.
"""

import argparse
import math
import random
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from measuring import write_result
from torch import Tensor

from alize.artifact.pieces import Pieces
from alize.calibration_text import BUILT_IN, CalibrationText
from alize.mixing import Mix, choose, plan_mix
from alize.models.checkpoint import Checkpoint
from alize.models.registry import single_weights
from alize.models.session import TorchEngine
from alize.optimize.quantisation import DEFAULT_BUDGET, MIXED, Quantisation, unit_of
from alize.optimize.round_to_integers import dequantised
from alize.progress import SilentProgress
from alize.rounding import round_weights

TEXT = Path(__file__).with_name("quantisation_quality.txt")
SEQUENCE = 256
RANDOM = 3
SUBJECTS = ("int4-g64", "int4-g64-asym", "int4-g32", "int4-g32-asym", "int4-g128", "int4-g128-asym", "int8", "int8-channel-asym")


class Judge:
    """A model in float32 whose weights are exchanged, and what it says of the text with its own ones."""

    def __init__(self, checkpoint: Checkpoint, count: int) -> None:
        self.model = TorchEngine(checkpoint).model
        self.own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        encoder = tokenizers.Tokenizer.from_file(str(checkpoint.folder / "tokenizer.json"))
        ids = torch.tensor(encoder.encode(TEXT.read_text(encoding="utf-8")).ids[:count])
        self.sequences = torch.split(ids, SEQUENCE)
        self.expected = list(self._log_probs())

    def figures(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Of the model with these weights in the place of its own."""
        self.model.load_state_dict(self.own | weights, assign=True)
        kl, right, loss = [], [], []
        for tokens, expected, found in zip(self.sequences, self.expected, self._log_probs(), strict=True):
            kl.append(torch.nn.functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1))
            right.append(found.argmax(-1) == expected.argmax(-1))
            loss.append(-found[:-1].gather(1, tokens[1:, None])[:, 0])
        every = torch.cat(kl)
        return {
            "kl_mean": round(float(every.mean()), 4),
            "kl_median": round(float(every.median()), 4),
            "kl_error": round(float(every.std()) / math.sqrt(len(every)), 4),
            "perplexity": round(math.exp(torch.cat(loss).mean()), 2),
            "top1_agreement": round(float(torch.cat(right).float().mean()), 4),
        }

    @torch.inference_mode()
    def _log_probs(self) -> Iterator[Tensor]:
        config = self.model.config
        empty = torch.empty(1, config.num_kv_heads, 0, config.head_size)
        for tokens in self.sequences:
            count = len(tokens)
            mask = torch.ones(1, count, dtype=torch.int64)
            logits, _ = self.model(tokens[None], torch.arange(count)[None], mask, [(empty, empty)] * config.num_layers)
            yield logits[0].log_softmax(-1)


def mixes(checkpoint: Checkpoint, weights: str, scratch: Path) -> dict[str, Mix | None]:
    """By what is said of them: the mix that alize chooses, and others of the same size; of other weights one that is none."""
    chosen = Quantisation.parse(weights)
    assert chosen is not None
    if not chosen.budget:
        return {"": None}
    pieces = Pieces(scratch / f"plan-{replace(chosen, budget=DEFAULT_BUDGET)}")  # what a matrix loses depends on no budget
    found: dict[str, Mix | None] = {
        "": plan_mix(checkpoint, weights, CalibrationText.open(BUILT_IN), pieces, progress=SilentProgress())
    }
    shapes = {name: weight.shape for name, weight in single_weights(checkpoint).items()}
    layers = max(int(name.split(".")[2]) for name in shapes if name.startswith("model.layers."))
    for seed in range(RANDOM):
        draw = random.Random(seed)
        known = {name: (draw.random() * math.prod(shape), 0.0) for name, shape in shapes.items() if unit_of(name)}
        found[f", chosen at random ({seed})"] = choose(shapes, chosen, known)
    ends = {name: min(int(name.split(".")[2]), layers - int(name.split(".")[2])) for name in shapes if unit_of(name)}
    known = {name: (2.0 ** (20 - place) * math.prod(shapes[name]), 0.0) for name, place in ends.items()}
    return found | {", first and last layers": choose(shapes, chosen, known)}


def ours(
    checkpoint: Checkpoint, weights: str, scratch: Path, *, text: CalibrationText | None, mix: Mix | None = None
) -> tuple[dict[str, Tensor], float]:
    """The dequantised matrices, and the bits of a weight that is not in a table, scales and zero points included."""
    pieces = Pieces(scratch / "rounded")
    rounded = round_weights(checkpoint, weights, pieces, text=text, mix=mix, progress=SilentProgress())
    assert rounded is not None
    found = {name: dequantised(rounded(name)) for name in rounded.forms}
    layers = [name for name in rounded.forms if name.startswith("model.layers.")]
    size = sum(sum(length for _, length in rounded.places(name)) for name in layers)
    pieces.clear()
    return found, 8 * size / sum(found[name].numel() for name in layers)


def theirs(checkpoint: Checkpoint, weights: str, scratch: Path, python: Path) -> dict[str, Tensor]:
    """The same from the IR that optimum-intel writes."""
    chosen = Quantisation.parse(weights)
    assert chosen is not None
    folder = scratch / f"nncf-{weights}"
    kind = "sym" if chosen.symmetric else "asym"
    script = Path(__file__).with_name("rival_nncf.py")
    words = [str(python), str(script), str(checkpoint.folder), str(folder), str(chosen.bits), str(chosen.group or -1), kind]
    if not (folder / "openvino_model.xml").is_file():
        subprocess.run(words, check=True, capture_output=True)
    return read_ir(folder / "openvino_model.xml", set(single_weights(checkpoint)))


def read_ir(path: Path, names: set[str]) -> dict[str, Tensor]:
    """What OpenVINO makes of the compressed constants that its products and lookups read, in float32."""
    import openvino
    from openvino import opset13 as ops

    core = openvino.Core()
    found: dict[str, Tensor] = {}
    for node in core.read_model(path).get_ops():
        if node.get_type_name() not in ("MatMul", "Gather"):
            continue
        value = node.input_value(1 if node.get_type_name() == "MatMul" else 0)
        named = [name for name in map(_parameter, _constants(value.get_node())) if name in names]
        if named:
            model = openvino.Model([ops.convert(value, "f32")], [], "weight")
            result = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]
            found[named[0]] = torch.from_numpy(np.array(result))
    missing = {name for name in names if name.endswith("_proj.weight")} - set(found)
    if missing:
        raise SystemExit(f"{path}: {sorted(missing)[0]} and {len(missing) - 1} more weights were not found")
    return found


def _constants(node: Any) -> list[str]:
    """Names of the constants that a node is made of; none where it depends on the model's inputs."""
    names, waiting, seen = [], [node], set()
    while waiting:
        node = waiting.pop()
        if node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if node.get_type_name() in ("Parameter", "ReadValue"):
            return []
        if node.get_type_name() == "Constant":
            names.append(node.get_friendly_name())
        waiting += [source.get_source_output().get_node() for source in node.inputs()]
    return names


def _parameter(constant: str) -> str:
    return constant.removeprefix("self.").split("._openvino_orig_weight")[0].split(".weight")[0] + ".weight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rival", type=Path, help="the Python of an environment with optimum-intel and NNCF")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--work", type=Path, help="where what the rival wrote is kept, and found the next time")
    parser.add_argument("--subjects", nargs="*", default=SUBJECTS, help="names of weights: int8, int4-g64-asym ...")
    parser.add_argument("--name", default="quantisation-quality", help="of the result in benchmarks/results")
    options = parser.parse_args()
    checkpoint = Checkpoint.open(options.checkpoint)
    judge, text = Judge(checkpoint, options.tokens), CalibrationText.open(BUILT_IN)
    found: dict[str, dict[str, float]] = {"float32": judge.figures({})}

    def keep(label: str, figures: dict[str, float]) -> None:
        found[label] = figures
        write_result(options.name, {"checkpoint": options.checkpoint.name, "tokens": options.tokens, "subjects": found})

    with tempfile.TemporaryDirectory() as scratch:
        for weights in options.subjects:
            if options.rival is not None and not weights.startswith(MIXED):
                keep(f"{weights} nncf", judge.figures(theirs(checkpoint, weights, options.work or Path(scratch), options.rival)))
            for said, mix in mixes(checkpoint, weights, Path(scratch)).items():
                for calibration in (None, text):
                    if calibration is None or not (said or weights.startswith("int8")):
                        values, bits = ours(checkpoint, weights, Path(scratch), text=calibration, mix=mix)
                        expected = {} if mix is None or said else {"kl_expected": round(mix.kl, 4)}
                        label = f"{weights}{' calibrated' if calibration else ''}{said}"
                        keep(label, {"bits": round(bits, 3)} | judge.figures(values) | expected)


if __name__ == "__main__":
    main()
