"""Both lowerings, end to end on their engines: logits, interface, files, the same bytes again."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alize.errors import LoweringFailed
from alize.export.hub import export_hub
from tests.export.hubs import DTYPES, TOLERANCE, Array, Tiny, chunks, left_padded, make_tiny, torch_logits
from tests.optimize.lowered import LOWERINGS, logits, lower, onnxruntime_session, openvino_request
from tests.tiny import YARN

TOTAL = 17
MODELS: dict[str, dict[str, Any]] = {
    "full": {},
    "windowed": {"window": 6},
    "mixed": {"family": "ministral", "window": 6, "pattern": (0, 1)},
    "ministral3": {"family": "ministral3", "window": 6, "rope": YARN},
}
FILES = {
    "onnxruntime": {"model.onnx", "model.onnx.data"},
    "openvino": {"openvino_model.bin", "openvino_model.xml"},
}


@pytest.fixture(scope="module", params=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", layers=2, **MODELS[request.param])


@pytest.fixture(scope="module", params=[(target, weights) for target in LOWERINGS for weights in DTYPES], ids="-".join)
def lowered(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    target, weights = request.param
    folder = tmp_path_factory.mktemp("lowered") / target
    lower(tiny, target, folder, weights=weights)
    return target, weights, folder


def assert_logits(lowered: tuple[str, str, Path], tiny: Tiny, padding: list[int], sizes: list[int]) -> None:
    """Compares the positions that are tokens; what stands at padding is nobody's."""
    target, weights, folder = lowered
    tokens, (mask, positions) = tiny.tokens(len(padding), TOTAL), left_padded(padding, TOTAL)
    found = logits(target, folder, tiny, chunks(tokens, mask, positions, sizes))
    expected = torch_logits(tiny.model(weights), tokens, mask, positions)
    assert found.shape == expected.shape and expected.std() > 1
    real = mask == 1
    np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("sizes", [[TOTAL], [5, 1, 3, 8], [1] * TOTAL], ids=["at once", "chunks", "token by token"])
def test_logits(lowered: tuple[str, str, Path], tiny: Tiny, sizes: list[int]) -> None:
    """Against PyTorch with the same stored weights: what is stored is rounded, what is computed is float32."""
    assert_logits(lowered, tiny, [0], sizes)


def test_padding_on_the_left(lowered: tuple[str, str, Path], tiny: Tiny) -> None:
    """The prompt at once, then a token at a time: what the operators of both engines take as a batch."""
    assert_logits(lowered, tiny, [0, 4, 11], [TOTAL - 4, 1, 1, 1, 1])


def test_structure(lowered: tuple[str, str, Path], tiny: Tiny) -> None:
    target, _, folder = lowered
    windows = list(tiny.config.windows)
    found = LOWERINGS[target].check_structure(folder, tiny.info(), {})
    expected: dict[str, Any] = {"fused_attention_nodes": 2, "rotary_nodes": 4, "windows": windows}
    if target == "onnxruntime":
        expected |= {"attention": "GroupQueryAttention", "norm_nodes": 5}
    else:
        expected |= {"attention": "ScaledDotProductAttention with state", "norm_nodes": 4}
        expected |= {"paged_attention_windows": sorted(set(windows)), "paged_attention_nodes": 2}
    assert found == expected


def test_files(lowered: tuple[str, str, Path]) -> None:
    target, _, folder = lowered
    assert {path.name for path in folder.iterdir()} == FILES[target]


def test_onnxruntime_interface(tiny: Tiny, tmp_path: Path) -> None:
    assert lower(tiny, "onnxruntime", tmp_path / "out", weights="fp16") == (
        "store_weights_fp16",
        "rotary_before_split",
        "transpose_weights",
        "group_query_attention",
        "drop_functions",
    )
    session = onnxruntime_session(tmp_path / "out")
    past = ["batch_size", 2, "past_sequence_length", 8]
    parts = [f"{layer}.{part}" for layer in (0, 1) for part in ("key", "value")]
    assert {value.name: value.shape for value in session.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        **{f"past_key_values.{part}": past for part in parts},
    }
    mixed = len(set(tiny.config.windows)) > 1
    defaults = {value.name: value.shape for value in session.get_overridable_initializers()}
    assert defaults == {"num_logits_to_keep": [1]} | ({"num_evicted": ["evicted_rows"]} if mixed else {})
    assert [value.name for value in session.get_outputs()] == ["logits", *(f"present.{part}" for part in parts)]
    assert {value.type for value in session.get_outputs()} == {"tensor(float)"}


@pytest.mark.parametrize("evicted", [0, 1, 4, 6])
def test_num_evicted_moves_the_layers_with_a_window(evicted: int, tmp_path: Path) -> None:
    """A client that forgot the first positions in those layers, as far as the window allows, gets what it got before."""
    tiny = make_tiny(tmp_path / "tiny", layers=2, **MODELS["mixed"])
    lower(tiny, "onnxruntime", tmp_path / "out")
    session = onnxruntime_session(tmp_path / "out")
    tokens, (mask, positions) = tiny.tokens(2, 14), left_padded([0, 0], 14)
    first, second = chunks(tokens, mask, positions, [11, 3])
    names = [value.name for value in session.get_outputs()]
    results = dict(zip(names, session.run(names, {**first, **tiny.no_past(2)}), strict=True))
    past = {name.replace("present", "past_key_values"): value for name, value in results.items() if name != "logits"}
    shortened = {name: value[:, :, evicted:] if ".1." in name else value for name, value in past.items()}
    expected = torch_logits(tiny.model(), tokens, mask, positions)[:, 11:]
    for row in (0, 1):  # the kernel takes a batch of several new tokens only where nothing is cached
        one = {name: value[row : row + 1] for name, value in {**second, **shortened}.items()}
        (found,) = session.run(["logits"], one | {"num_evicted": np.array([evicted], np.int64)})
        np.testing.assert_allclose(found, expected[row : row + 1], rtol=0, atol=TOLERANCE)


def test_openvino_interface(tiny: Tiny, tmp_path: Path) -> None:
    import openvino

    assert lower(tiny, "openvino", tmp_path / "out", weights="fp16") == (
        "store_weights_fp16",
        "keep_all_logits",
        "drop_functions",
        "openvino_attention",
        "make_stateful",
    )
    model = openvino.Core().read_model(tmp_path / "out" / "openvino_model.xml")
    kinds = {value.any_name: (value.element_type.get_type_name(), str(value.partial_shape)) for value in model.inputs}
    assert kinds == {
        "input_ids": ("i64", "[?,?]"),
        "position_ids": ("i64", "[?,?]"),
        "attention_mask": ("i64", "[?,?]"),
        "beam_idx": ("i32", "[?]"),
    }
    assert [value.any_name for value in model.outputs] == ["logits"]
    assert str(model.output("logits").partial_shape) == "[?,?,320]"
    names = {str(state.get_info().variable_id) for state in model.get_variables()}
    assert len(names) == 4  # key and value of each layer
    assert {str(state.get_info().data_shape) for state in model.get_variables()} == {"[?,2,?,8]"}


def test_beam_idx_chooses_the_row_that_a_cache_is_taken_from(tiny: Tiny, tmp_path: Path) -> None:
    lower(tiny, "openvino", tmp_path / "out")
    tokens, (mask, positions) = tiny.tokens(2, 9), left_padded([0, 0], 9)
    first, second = chunks(tokens, mask, positions, [8, 1])

    def after(beam_idx: list[int], token: Array) -> Array:
        request = openvino_request(tmp_path / "out")
        request.infer({**first, "beam_idx": np.arange(2, dtype=np.int32)})
        step = {**second, "input_ids": token, "beam_idx": np.array(beam_idx, np.int32)}
        return np.array(request.infer(step)["logits"])

    straight = after([0, 1], second["input_ids"])
    crossed = after([1, 0], second["input_ids"][::-1])
    np.testing.assert_allclose(crossed, straight[::-1], rtol=0, atol=1e-5)
    assert np.abs(straight[0] - straight[1]).max() > 0.1


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


LOWER_ELSEWHERE = """
import sys
from pathlib import Path
from alize.compilers import COMPILERS
from alize.export.hub import export_hub
from alize.models.checkpoint import Checkpoint
checkpoint, out = Checkpoint.open(Path(sys.argv[1])), Path(sys.argv[2])
for target in ("onnxruntime", "openvino"):
    (out / target).mkdir(parents=True)
    COMPILERS[target].lowering.lower(export_hub(checkpoint), out / target, weights="bf16")
"""


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    """Twice in this process, and in another one, where sets of strings have another order and no node was counted before."""
    tiny = make_tiny(tmp_path / "tiny", layers=2, **MODELS["mixed"])
    for target in LOWERINGS:
        for name in ("first", "second"):
            lower(tiny, target, tmp_path / name / target, weights="bf16")
    command = [sys.executable, "-c", LOWER_ELSEWHERE, str(tiny.checkpoint.folder), str(tmp_path / "elsewhere")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "1"})
    for target in LOWERINGS:
        first = digests(tmp_path / "first" / target)
        assert set(first) == FILES[target]
        assert digests(tmp_path / "second" / target) == first
        assert digests(tmp_path / "elsewhere" / target) == first


@pytest.mark.parametrize("target", LOWERINGS)
def test_a_lowering_starts_from_a_hub_with_weights_only(target: str, tiny: Tiny, tmp_path: Path) -> None:
    """A hub that was lowered already is refused, not lowered twice."""
    hub = export_hub(tiny.checkpoint)
    LOWERINGS[target].lower(hub, tmp_path, weights="fp32")
    with pytest.raises(LoweringFailed):
        LOWERINGS[target].lower(hub, tmp_path, weights="fp32")
