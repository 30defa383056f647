"""What ONNX Runtime ran, from its own profiler: operator and row counts of each node."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.errors import LoweringFailed, OutputError
from alize.optimize.expert_structure import PREFILL, Experts, Phase, by_layer, chosen_experts, probe_token
from alize.optimize.onnxruntime_slices import cut_layers
from alize.optimize.openvino_slices import Slices
from alize.optimize.widen import read_widened

__all__ = ["Run", "executed_kinds", "expert_phases", "profile", "profile_slices", "reachable_experts"]


@dataclass(frozen=True)
class Run:
    """One run of the graph. kinds: name -> operator of every node that ran; rows: name -> rows of its first input (elements
    where it has no axis); chosen: `layers.{i}.experts` of each layer, int64 [S,top_k]."""

    name: str
    tokens: int
    kinds: Mapping[str, str]
    rows: Mapping[str, int]
    chosen: tuple[NDArray[np.int64], ...]


def profile_slices(path: Path, info: ModelInfo, slices: Slices) -> list[Run]:
    """What `profile` gives, of a few layers at a time."""
    runs: list[Run] = []
    streams: list[NDArray[np.float32]] = []
    for first, stop in slices:
        found, streams = profile(path, info, layers=(first, stop), streams=streams)
        runs = [_joined(one, two) for one, two in zip(runs, found, strict=True)] if runs else found
    return runs


def _joined(one: Run, other: Run) -> Run:
    """The same run of other layers put together."""
    return replace(
        one,
        kinds={**one.kinds, **other.kinds},
        rows={**one.rows, **other.rows},
        chosen=(*one.chosen, *other.chosen),
    )


def profile(
    path: Path, info: ModelInfo, *, layers: tuple[int, int], streams: Sequence[NDArray[np.float32]] = ()
) -> tuple[list[Run], list[NDArray[np.float32]]]:
    """A prefill of PREFILL equal tokens and a decode step after it, of the layers from the first to before the second of
    `layers`, and what they give. streams: in each of the two, what the layers before gave. Raises OutputError where the profile
    can't be written, LoweringFailed where a layer with experts does not say which it chose."""
    import onnxruntime

    outputs = [f"layers.{layer}.experts" for layer in range(*layers)] if info.experts else []
    model, start, output = cut_layers(read_widened(path), *layers, info.layers)
    known = {name for node in model.graph.node for name in node.output}
    if missing := [name for name in outputs if name not in known]:
        raise LoweringFailed(f"the model has no value {missing[0]}: which experts its router chooses cannot be seen")
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in outputs)
    with tempfile.TemporaryDirectory(prefix="alize-profile-") as scratch:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        given, chosen = _run(session, info, output, outputs, [{start: stream} for stream in streams])
        try:
            events = json.loads(Path(session.end_profiling()).read_text())
        except ValueError as error:  # the engine does not say that it could not write
            raise OutputError(f"{scratch} has no room for the engine's profile: free space there, or set TMPDIR") from error
    return _sort(events, chosen), given


def _run(
    session: Any, info: ModelInfo, output: str, outputs: list[str], hidden: Sequence[Mapping[str, NDArray[np.float32]]]
) -> tuple[list[NDArray[np.float32]], list[tuple[NDArray[np.int64], ...]]]:
    """Both runs; what the layers gave in each, and what each layer's router chose."""
    known = {value.name for value in session.get_inputs()}
    past = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past_key_values.")}
    presents = [name.replace("past_key_values", "present") for name in past]
    caches = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in past.items()}
    given, chosen = [], []
    for number, (start, stop) in enumerate(((0, PREFILL), (PREFILL, PREFILL + 1))):
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": np.full((1, stop - start), probe_token(info), np.int64),
            "position_ids": np.arange(start, stop, dtype=np.int64)[None],
            "attention_mask": np.ones((1, stop), np.int64),
        }
        feeds = {name: array for name, array in feeds.items() if name in known} | dict(hidden[number] if hidden else {})
        found = session.run([output, *presents, *outputs], feeds | caches)
        given.append(found[0])
        caches = dict(zip(past, found[1 : 1 + len(past)], strict=True))
        chosen.append(tuple(found[1 + len(past) :]))
    return given, chosen


def _sort(events: list[dict[str, Any]], chosen: list[tuple[NDArray[np.int64], ...]]) -> list[Run]:
    """The profile's events by the run that they fall into."""
    spans = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run"]
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    runs = []
    for name, tokens, span, experts in zip(("prefill", "decode"), (PREFILL, 1), sorted(spans), chosen, strict=True):
        mine = [event for event in kernels if span[0] <= event["ts"] <= span[1]]
        names = [event["name"].removesuffix("_kernel_time") for event in mine]
        kinds = {node: str(event["args"]["op_name"]) for node, event in zip(names, mine, strict=True)}
        rows = {node: _rows(event["args"]) for node, event in zip(names, mine, strict=True)}
        runs.append(Run(name, tokens, kinds, rows, experts))
    return runs


def _rows(details: Mapping[str, Any]) -> int:
    """The product of all axes but the last of a node's first input."""
    shapes = [shape for typed in details.get("input_type_shape", []) for shape in typed.values()]
    return int(np.prod(shapes[0][:-1])) if shapes else 0


def executed_kinds(runs: list[Run]) -> dict[str, str]:
    """Name -> operator of every node that ran at all."""
    return {name: kind for run in runs for name, kind in run.kinds.items()}


def reachable_experts(runs: list[Run], layers: int) -> Experts:
    """The experts' multiplications of the graph: the engine visits every one, with rows or without."""
    return by_layer((name for name, kind in executed_kinds(runs).items() if kind in _MULTIPLIES), layers)


def expert_phases(runs: list[Run], layers: int) -> list[Phase]:
    """A multiplication of 0 rows is visited and computes nothing: it did not run."""
    return [
        Phase(
            run.name,
            run.tokens,
            chosen_experts(run.chosen),
            by_layer((name for name, rows in run.rows.items() if rows), layers),
        )
        for run in runs
    ]


_MULTIPLIES = ("MatMul", "FusedMatMul", "Gemm", "MatMulNBits")
