"""What the parts of a build cost in memory and on the disk. `alize.durations` has their time.

They were measured on Mistral-7B's shape cut to 2 and 4 layers, see docs/memory.md; benchmarks/build_memory.py compares what
comes of them with what a build takes.
"""

import math
from dataclasses import dataclass

from alize.artifact.manifest import ModelInfo
from alize.models.adapter import BLOCK
from alize.models.checkpoint import ITEM_SIZES, Checkpoint
from alize.models.reference import HEAD_ROWS, ROWS
from alize.models.registry import family_for, single_weights
from alize.nvidia import PACKAGES
from alize.optimize.quantisation import Quantisation, unit_of
from alize.validate.cases import Plan
from alize.validate.golden_prompts import SIZES, TURNED
from alize.validate.references import kept_positions

__all__ = ["OTHER_FILES", "PROCESS", "Model", "build_memory", "output_bytes", "run_memory", "scratch_bytes"]

PROCESS = 350_000_000
"""Anonymous bytes of a process that has imported PyTorch, the exporter and the engine, exported a graph and had it compiled."""

WORKING = 80_000_000
"""Anonymous bytes of what is computed on the way and too small to be told apart."""

COPIED = {"openvino": 2.2, "onnxruntime": 2.7, "tensorrt": 2.7, "tensorrt-rtx": 2.7}
"""Of the largest weight as it is stored, what comparing it with the checkpoint's holds (writing it holds no more): copies."""

_ONNXRUNTIME = {"fp32": 1.0, "fp16": 1.0, "bf16": 1.0}
UNPACKED = {
    "openvino": {"fp32": 1.0, "fp16": 2.0, "bf16": 2.0},
    "onnxruntime": _ONNXRUNTIME,
    "tensorrt": _ONNXRUNTIME,
    "tensorrt-rtx": _ONNXRUNTIME,
}
"""Of the weights in float32, what the engine holds once it has run: OpenVINO keeps them both converted and packed. What is
lowered for TensorRT is run by ONNX Runtime."""

EXPERT = {"openvino": 3_000_000}
"""Bytes that the engine holds for each expert of each layer besides its weights: what three nodes keep to compute with.
The demo model's twin in int8 has 240 of them and 0.75 GB that its weights do not account for."""

SLICE = 1.2
"""Of a slice's weights, what is held while it runs: the engine does not give back all of the slice before."""

MEASURED = 64 * 8 * 8
"""Bytes for each word of the vocabulary while two sets of logits are compared: some float64 of 64 positions at a time."""

OTHER_FILES = 3_000_000
"""Bytes of graph, report and golden prompts; the tokenizer's files are counted as they are."""

PROGRAM = 6_000_000
"""Bytes of a TensorRT plan besides its weights: kernels and what they are told. One layer of Mistral-7B's shape has 4 MB of them,
the demo model's 30 layers have 14."""

ENGINE, ENGINE_FIXED = 1.7, 300_000_000
"""Of a plan's weights, what TensorRT holds in anonymous memory while it builds, and bytes whatever they are; measured by
benchmarks/engine_build.py: 1.4 to 1.5 times 1 to 1.4 GB, 0.8 GB for the demo model's 0.27."""

SCRATCH = {"openvino": 1.0, "onnxruntime": 0.0, "tensorrt": 1.0, "tensorrt-rtx": 1.0}
"""Of the stored weights in floats, what lies on the disk beside the output for a while: OpenVINO reads them from a scratch
ONNX file, and what TensorRT parses is one. Integers lie in files of their own until the artifact is sealed, for any target, and
TensorRT's graph holds them once more."""


@dataclass(frozen=True)
class Model:
    """Sizes of a checkpoint's model as a target stores it. Numbers of parameters but where bytes are named.

    layer: of the largest layer.   matrix: of its largest matrix, one expert's for itself.   active: what a token is multiplied
    with.   inner: width of the MLP.   read_bytes: of the checkpoint.   parameters: all.   stored_bytes, largest_bytes: of all
    weights and of the largest one in the artifact.   merging: what an adapter adds.
    """

    info: ModelInfo
    target: str
    weights: str
    layer: int
    embedding: int
    head: int
    matrix: int
    active: float
    inner: int
    read_bytes: int
    parameters: int
    stored_bytes: int
    largest_bytes: int
    merging: "Merging"

    @staticmethod
    def of(checkpoint: Checkpoint, info: ModelInfo, *, target: str, weights: str) -> "Model":
        """From config.json and the shards' headers."""
        shapes = {name: weight.shape for name, weight in single_weights(checkpoint).items()}
        counts = {name: math.prod(shape) for name, shape in shapes.items()}
        stored = [stored_bytes(name, shape, weights) for name, shape in shapes.items()]
        layers = [0] * info.layers
        for name, count in counts.items():
            if name.startswith("model.layers."):
                layers[int(name.split(".")[2])] += count
        embedding = counts["model.embed_tokens.weight"]
        head = counts.get("lm_head.weight", embedding)
        experts = sum(count for name, count in counts.items() if ".mlp.experts." in name)
        share = info.experts_per_token / info.experts if info.experts else 0.0
        return Model(
            info=info,
            target=target,
            weights=weights,
            layer=max(layers),
            embedding=embedding,
            head=head,
            matrix=max(count for name, count in counts.items() if name.startswith("model.layers.")),
            active=sum(layers) + head - experts * (1 - share),
            inner=family_for(checkpoint.config).config.from_dict(checkpoint.config).intermediate_size,
            read_bytes=sum(tensor.size for tensor in checkpoint.stored_tensors.values()),
            parameters=sum(counts.values()),
            stored_bytes=sum(stored),
            largest_bytes=max(stored),
            merging=Merging.of(checkpoint),
        )


@dataclass(frozen=True)
class Merging:
    """Of merging an adapter, all 0 where there is none.

    memory: bytes of the largest merged matrix, and of what a block of its product takes: eight copies in float32 (measured).
    changed: parameters that it changes.   products: floating point operations of making each product once.
    read_bytes: of the adapter.
    """

    memory: int
    changed: int
    products: int
    read_bytes: int

    @staticmethod
    def of(checkpoint: Checkpoint) -> "Merging":
        """From the headers of the checkpoint and of its adapter."""
        adapter = checkpoint.adapter
        if adapter is None:
            return Merging(0, 0, 0, 0)
        infos = {name: checkpoint.tensors[name] for name in adapter.merges}
        largest = max(math.prod(info.shape[-2:]) * ITEM_SIZES[info.dtype] for info in infos.values())
        changed = {name: math.prod(info.shape) for name, info in infos.items()}
        ranks = {name: max((one.rank for one in merge.products), default=0) for name, merge in adapter.merges.items()}
        products = sum(2 * ranks[name] * count for name, count in changed.items())
        return Merging(largest + 8 * 4 * BLOCK, sum(changed.values()), products, adapter.size)

    def seconds(self, *, multiplied: float, copied: float) -> float:
        """Of merging everything once: its product is made, added and looked through. Speeds are those of `speeds.Speed`."""
        return self.products / multiplied + 5 * 4 * self.changed / copied


def stored_bytes(name: str, shape: tuple[int, ...], weights: str) -> int:
    """Bytes of one weight in an artifact: matrices as `weights` says, with their scales and zero points, vectors in float32."""
    quantisation = Quantisation.parse(weights)
    form = quantisation.form(name, shape) if quantisation else None
    if form is None:
        return math.prod(shape) * (4 if len(shape) < 2 or quantisation else {"fp32": 4, "fp16": 2, "bf16": 2}[weights])
    if quantisation is not None and quantisation.budget and unit_of(name) is not None:
        return int(math.prod(shape) * quantisation.budget / 8)  # which of them are in int8 is not known yet, how many bits are is
    return form.stored_bytes(shape)


def output_bytes(model: Model, plans: int) -> int:
    """Of the weights in an artifact: once, or in each of so many plans, which hold a table of integers in float16 as well."""
    if not plans:
        return model.stored_bytes
    table = 2 * model.embedding if Quantisation.parse(model.weights) else 0
    return plans * (model.stored_bytes + table + PROGRAM)


def scratch_bytes(model: Model, plans: int) -> int:
    """Bytes on the disk beside the output while it is made."""
    if Quantisation.parse(model.weights):
        return model.stored_bytes * (2 if plans else 1)
    return int(model.stored_bytes * SCRATCH[model.target])


def build_memory(model: Model, plan: Plan) -> int:
    """Anonymous bytes at the peak of lowering, of building a plan, of comparing the weights and of the reference run, each after
    the other."""
    info = model.info
    window = max(info.windows)
    keys = min(plan.length, window + 128) if window else plan.length  # alize.models.ops.QUERY_ROWS queries at a time
    stream = 4 * plan.length * (4 * info.hidden_size + 2 * info.query_heads * info.head_size)
    scores = 3 * 4 * info.query_heads * 128 * keys
    layer = 4 * (model.layer + model.matrix) + stream + max(scores, 3 * 4 * min(ROWS, plan.length) * model.inner)
    logits = 4 * len(kept_positions(plan.length)) * info.vocab_size
    head = 6 * min(HEAD_ROWS, info.vocab_size) * info.hidden_size + 2 * logits
    compared = logits + MEASURED * info.vocab_size
    if info.experts:  # the golden prompts with near-ties turned round, and the float64 that comparing them takes
        asked = len(kept_positions(min(max(SIZES), plan.length)))
        compared = max(compared, len(TURNED) * logits + 6 * 8 * asked * info.vocab_size)
    copied = COPIED[model.target] * model.largest_bytes
    engine = ENGINE_FIXED + ENGINE * model.stored_bytes if model.target in PACKAGES else 0
    return PROCESS + model.merging.memory + int(max(copied, WORKING + logits + max(layer, head, compared), engine))


def run_memory(model: Model, plan: Plan, layers: int) -> int:
    """Anonymous bytes of the engine with so many layers. Of a slice: with the head or the embedding, whichever is larger."""
    integers = model.stored_bytes / (4 * model.parameters)  # the engines keep them packed
    unpacked = UNPACKED[model.target].get(model.weights, integers)
    head, table = 4 * unpacked * model.head, 4 * model.embedding
    weights = 4 * unpacked * layers * model.layer + EXPERT.get(model.target, 0) * layers * model.info.experts
    weights = weights + head + table if layers == model.info.layers else SLICE * (weights + max(head, table))
    rows = max((len(case.first) * max(case.first) for case in plan.cases), default=0)
    logits = 3 * 4 * rows * model.info.vocab_size  # the engine's, the runner's copy of them and the session's
    kept = len(kept_positions(plan.length))
    answers = 2 * 4 * sum(min(case.tokens, len(case.first) * kept) for case in plan.cases) * model.info.vocab_size
    return PROCESS + WORKING + int(weights + logits + answers) + MEASURED * model.info.vocab_size
