"""Rounding to integers: the numbers by themselves, then the pass that stores them behind DequantizeLinear."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alize.errors import CorruptCheckpoint, LoweringFailed, UnsupportedModel, UsageError
from alize.export.hub import export_hub
from alize.models.mistral import Model
from alize.models.reference import Reference
from alize.models.registry import family_for
from alize.optimize.passes import run
from alize.optimize.quantisation import Form, Quantisation
from alize.optimize.quantise import float_part, integer_part, quantise
from alize.optimize.round_to_integers import Integers, dequantised, pack_nibbles, quantised, unpack_nibbles
from alize.optimize.store_weights import store_weights
from alize.optimize.transpose_weights import transpose_weights
from alize.validate.stored import as_stored, changed_integers
from tests.export.hubs import (
    TOLERANCE,
    Tiny,
    Watch,
    checked,
    chunks,
    left_padded,
    make_tiny,
    nodes,
    onnx_logits,
    torch_logits,
)

UP, DOWN, EMBEDDING = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"
WEIGHTS = ["int4", "int4-g32-asym", "int4-channel", "int8", "int8-g64", "int8-channel-asym"]
FORMS = [Form(bits, group, symmetric) for bits in (4, 8) for group in (32, 96) for symmetric in (True, False)]


def matrix(rows: int = 24, columns: int = 96, *, seed: int = 0) -> Tensor:
    """Normal values, and each row of another size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.logspace(-6, 3, rows)[:, None]


def plain(rows: Tensor, form: Form) -> Tensor:
    """Rounded with the scale that just reaches the largest value, as one would first write it."""
    groups = rows.reshape(-1, form.group)
    low, high = form.limits
    least, most = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = torch.maximum(-least, most) / high if form.symmetric else (most - least) / high
    zero = 0 if form.symmetric else (-least / scale).round()
    return (((groups / scale).round() + zero).clamp(low, high) - zero).mul(scale).reshape(rows.shape)


# what is chosen


@pytest.mark.parametrize(
    ("given_name", "name", "options"),
    [
        ("int4", "int4-g128", "--weights int4 --group-size 128"),
        ("int8", "int8-channel", "--weights int8 --group-size channel"),
        ("int4-g32-asym", "int4-g32-asym", "--weights int4 --group-size 32 --asymmetric"),
        ("int8-asym", "int8-channel-asym", "--weights int8 --group-size channel --asymmetric"),
        ("mixed", "mixed-b5-g128", "--weights mixed --bits 5 --group-size 128"),
        ("mixed-b4.75-g64-asym", "mixed-b4.75-g64-asym", "--weights mixed --bits 4.75 --group-size 64 --asymmetric"),
    ],
)
def test_names(given_name: str, name: str, options: str) -> None:
    chosen = Quantisation.parse(given_name)
    assert (str(chosen), chosen and chosen.options) == (name, options)
    assert Quantisation.parse(name) == chosen
    assert Quantisation.parse("bf16") is None
    assert (float_part(name), float_part("bf16"), integer_part("bf16")) == ("fp32", "bf16", ())


def test_other_groups_are_refused() -> None:
    with pytest.raises(UsageError, match="--group-size 48 is unknown: choose one of 128, 64, 32 and channel"):
        Quantisation.parse("int4-g48")


@pytest.mark.parametrize(("size", "group"), [(4096, 128), (576, 64), (96, 32), (56, 56), (32, 32)])
def test_the_largest_group_that_divides_else_the_row(size: int, group: int) -> None:
    assert Quantisation(4, 128).form(UP, (64, size)) == Form(4, group)


def test_tables_routers_and_norms() -> None:
    chosen = Quantisation(4, 64, symmetric=False)
    assert chosen.form(EMBEDDING, (320, 64)) == chosen.form("lm_head.weight", (320, 64)) == Form(8, 64)
    assert chosen.form("model.norm.weight", (64,)) is None
    assert chosen.form("model.layers.0.block_sparse_moe.gate.weight", (8, 64)) is None
    assert chosen.form("model.layers.0.mlp.gate_proj.weight", (96, 64)) == Form(4, 64, symmetric=False)
    assert chosen.smallest_group({UP: (96, 64), DOWN: (64, 96), EMBEDDING: (320, 64)}) == 32
    assert chosen.smallest_group({UP: (96, 64)}) == 32  # a group a row: nothing to go by


# the numbers


@given(st.lists(st.integers(-8, 7), max_size=33))
def test_nibbles_come_back(values: list[int]) -> None:
    signed = torch.tensor(values, dtype=torch.int8)
    packed = pack_nibbles(signed)
    assert len(packed) == (len(values) + 1) // 2
    assert torch.equal(unpack_nibbles(packed, len(values), signed=True), signed)
    unsigned = (signed + 8).view(torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(unsigned), len(values), signed=False), unsigned)


@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_nibbles_lie_as_onnx_has_them(values: list[int]) -> None:
    packed = pack_nibbles(torch.tensor(values, dtype=torch.int8))
    proto = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=[len(values)], raw_data=packed.numpy().tobytes())
    assert onnx.numpy_helper.to_array(proto).astype(np.int8).tolist() == values


@pytest.mark.parametrize("form", [form for form in FORMS if form.bits == 4 and form != Form(4, 32)])
def test_no_worse_than_the_scale_that_reaches_everything(form: Form) -> None:
    """Each error counted by the size of its weight: group by group, but for what rounding the scale to float16 costs; and in
    sum much better."""
    rows = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    found = quantised("w", rows, form)
    errors, naive = (
        ((x - rows) ** 2 * rows.abs()).reshape(-1, form.group).sum(1) for x in (dequantised(found), plain(rows, form))
    )
    assert (errors <= 1.01 * naive).all()
    assert errors.sum() < 0.95 * naive.sum()


def test_small_symmetric_groups_take_the_scale_that_reaches_the_largest_weight() -> None:
    rows = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    found = quantised("w", rows, Form(4, 32))
    groups = rows.reshape(*found.scales.shape, 32)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))[..., 0]
    torch.testing.assert_close(found.scales, (largest / -8).half())
    assert (found.values.reshape(groups.shape).amin(-1) == -8).all()


@pytest.mark.parametrize("form", [*(form for form in FORMS if form.bits == 8), Form(8, 192)])
def test_of_8_bits_nothing_is_clipped_by_more_than_a_step(form: Form) -> None:
    """Of a row a weight nearly as large as the largest, on the other side; of short groups nothing is, but for what rounding the
    scale to float16 costs. The integers are used to their end. A scale is negative where a row's largest weight is positive."""
    rows = torch.randn(96, 192, generator=torch.Generator().manual_seed(3))
    found = quantised("w", rows, form)
    steps = (dequantised(found) - rows).reshape(-1, form.group).abs() / found.scales.reshape(-1, 1).abs()
    assert steps.amax() < (1.1 if form.group > 128 else 0.65)
    groups, (low, high) = found.values.reshape(-1, form.group).int(), form.limits
    ends = (groups.amin(1) == low) | (groups.amax(1) == high) if form.symmetric else groups.amax(1) - groups.amin(1) >= high - 1
    assert ends.all()
    weights = rows.reshape(-1, form.group)
    positive = weights.amax(1) > -weights.amin(1)
    assert torch.equal(found.scales.reshape(-1) < 0, positive & (form.symmetric and form.group > 128))


@pytest.mark.parametrize("form", FORMS)
def test_what_lies_on_the_grid_is_kept_exactly(form: Form) -> None:
    low, high = form.limits
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(low, high + 1, (40, form.group), generator=generator).float()
    values[:, 0], values[:, 1] = low, high
    zeros = torch.full((40, 1), 0.0 if form.symmetric else 5.0)
    rows = (values - zeros) * torch.logspace(-3, 2, 40)[:, None].half().float()
    torch.testing.assert_close(dequantised(quantised("w", rows, form)), rows, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@given(first=st.integers(0, 23), count=st.integers(1, 24))
@settings(max_examples=15, deadline=None)
def test_a_row_is_rounded_alike_alone_and_among_others(form: Form, first: int, count: int) -> None:
    whole, part = quantised("w", matrix(), form), quantised("w", matrix()[first : first + count], form)
    assert torch.equal(part.values, whole.values[first : first + count])
    assert torch.equal(part.scales, whole.scales[first : first + count])
    assert part.zero_points is None or torch.equal(part.zero_points, whole.zero_points[first : first + count])  # type: ignore[index]


def test_threads_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, form = matrix(600, 96), Form(4, 32)
    whole = quantised("w", rows, form)
    monkeypatch.setattr("alize.optimize.round_to_integers._BLOCK", 100)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    found = quantised("w", rows, form)
    assert torch.get_num_threads() == (1 if threads > 1 else 2)
    torch.set_num_threads(threads)
    assert torch.equal(found.values, whole.values) and torch.equal(found.scales, whole.scales)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [0.0, 1e-45, -3e-42, 6e-8, 65504.0])
def test_zeros_denormals_and_large_values(form: Form, value: float) -> None:
    rows = torch.zeros(2, 96)
    rows[1, 7] = value
    found = dequantised(quantised("w", rows, form))
    assert (found[0] == 0).all() and found.isfinite().all()
    assert abs(float(found[1, 7]) - value) <= max(2.0**-24, abs(value) / 7)


def test_a_scale_that_float16_cannot_hold_is_refused() -> None:
    rows = torch.full((1, 32), 6e5)
    with pytest.raises(UnsupportedModel, match=r"layer.weight needs a scale of \S+, float16 ends at 65504: use --weights bf16"):
        quantised("layer.weight", rows, Form(4, 32))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_number_is_refused(form: Form, value: float) -> None:
    rows = matrix()
    rows[5, 40] = value
    with pytest.raises(CorruptCheckpoint, match=r"tensor layer.weight holds NaN or infinite values"):
        quantised("layer.weight", rows, form)


# the pass


@pytest.fixture(scope="module", params=["tied", "untied"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Inputs of 64 and of 96: groups of 64 and of 32, where 128 is asked for."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tied = request.param == "tied"
    return make_tiny(folder, layers=2, tied=tied, window=6, hidden_size=64, intermediate_size=96, dtype="bfloat16")


def rounded_model(tiny: Tiny, weights: str) -> Model:
    """PyTorch with the weights that the integers stand for."""
    family, rule = family_for(tiny.checkpoint.config), as_stored(weights)
    with torch.device("meta"):
        model = family.model(tiny.config)
    parameters = family.convert_weights(tiny.config, tiny.checkpoint)
    model.load_state_dict(
        {name: rule(name, tiny.checkpoint.read(w, torch.float32)) for name, w in parameters.items()}, assign=True
    )
    return model.eval()


@pytest.mark.parametrize("transposed", [False, True], ids=["out-in", "in-out"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_hub_stays_standard_onnx(tiny: Tiny, weights: str, transposed: bool, tmp_path: Path) -> None:
    """The full checker passes, and unmodified onnxruntime computes what PyTorch does with the same integers."""
    model = export_hub(tiny.checkpoint)
    run(model, (store_weights("fp32"), *([transpose_weights] if transposed else []), *integer_part(weights)))
    path = tmp_path / "model.onnx"
    checked(model, path)
    session = onnx_session_exact(path)
    tokens, (mask, positions) = tiny.tokens(1, 15), left_padded([0], 15)
    found = onnx_logits(session, chunks(tokens, mask, positions, [9, 1, 5]), tiny.no_past(1))
    expected = torch_logits(rounded_model(tiny, weights), tokens, mask, positions)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def onnx_session_exact(path: Path) -> onnxruntime.InferenceSession:
    """Unmodified onnxruntime without its optimiser, which would round activations to 8 bits."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def test_how_it_lies(tiny: Tiny) -> None:
    model = export_hub(tiny.checkpoint)
    matrices = 15 if tiny.config.tie_embeddings else 16
    assert run(model, (store_weights("fp32"), *integer_part("int4-g128-asym")))["quantise_int4_g128_asym"] == matrices
    kinds = {str(value.name): value for value in model.graph.initializers.values()}
    assert (kinds[UP].dtype, kinds[UP].shape) == (ir.DataType.UINT4, ir.Shape([96, 64]))
    assert (kinds[f"{UP}.scales"].dtype, kinds[f"{UP}.scales"].shape) == (ir.DataType.FLOAT16, ir.Shape([96]))
    assert (kinds[f"{DOWN}.zero_points"].dtype, kinds[f"{DOWN}.zero_points"].shape) == (ir.DataType.UINT4, ir.Shape([64, 3]))
    assert (kinds[EMBEDDING].dtype, kinds[f"{EMBEDDING}.scales"].shape) == (ir.DataType.INT8, ir.Shape([320]))
    attributes = {node.name: dict(node.attributes) for node in nodes(model, "DequantizeLinear")}
    assert {name: value.as_int() for name, value in attributes[f"{DOWN}.dequantised"].items()} == {"axis": 1, "block_size": 32}
    assert {name: value.as_int() for name, value in attributes[f"{UP}.dequantised"].items()} == {"axis": 0}
    products = {node.name for node in nodes(model, "MatMul")}
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    parts += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert products == {"lm_head"} | {f"layers.{layer}.{part}" for layer in (0, 1) for part in parts}


def test_each_matrix_is_read_once_and_alone(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers, scales and zero points of a matrix come from one rounding, and nothing is kept."""
    count = 0
    original = quantised

    def counted(name: str, rows: Tensor, form: Form) -> Integers:
        nonlocal count
        count += 1
        return original(name, rows, form)

    monkeypatch.setattr("alize.optimize.quantise.quantised", counted)
    watch = Watch(monkeypatch)
    model = export_hub(tiny.checkpoint)
    run(model, (store_weights("fp32"), *integer_part("int4-g32-asym")))
    assert not watch.given
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    assert count == (15 if tiny.config.tie_embeddings else 16)
    assert len(watch.given) == len(tiny.checkpoint.tensors)
    assert (watch.most, watch.alive()) == (1, 0)


def test_it_starts_from_float32(tiny: Tiny) -> None:
    with pytest.raises(LoweringFailed, match=r"quantise: model\.\S+ is BFLOAT16; its integers are found from float32"):
        quantise(Quantisation(4, 64))(export_hub(tiny.checkpoint))


def test_a_graph_without_matrices_is_refused(tiny: Tiny) -> None:
    model = export_hub(tiny.checkpoint)
    run(model, (store_weights("fp32"), *integer_part("int8")))
    with pytest.raises(LoweringFailed, match="quantise: the graph has no matrices"):
        quantise(Quantisation(8, 0))(model)


# what the reference computes with


def test_the_reference_rounds_rows_of_tables_as_the_artifact_stores_them(tiny: Tiny) -> None:
    """It reads embeddings by token and the head in blocks; the model here has both whole."""
    tokens = tiny.tokens(1, 20)
    mask, positions = left_padded([0], 20)
    found = Reference(tiny.checkpoint, weights=as_stored("int4")).run([tokens[0]]).logits[0]
    expected = torch_logits(rounded_model(tiny, "int4"), tokens, mask, positions)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_change_of_anything_stored_is_named() -> None:
    rows, form = matrix(), Form(4, 32, symmetric=False)
    right = quantised(UP, rows, form)
    assert right.zero_points is not None
    assert changed_integers(UP, right, right) is None
    values, scales, zeros = right.values.clone(), right.scales.clone(), right.zero_points.clone()
    values[3, 5] ^= 1
    scales[2, 1] = torch.nextafter(scales[2, 1], torch.tensor(9.0).half())
    zeros[7, 2] ^= 1
    for changed, message in (
        (Integers(values, right.scales, right.zero_points), "differs in 1 of 2304 integers, first at [3, 5]"),
        (Integers(right.values, scales, right.zero_points), "differs in 1 of 72 scales, first at [2, 1]"),
        (Integers(right.values, right.scales, zeros), "differs in 1 of 72 zero points, first at [7, 2]"),
        (Integers(right.values, right.scales, None), "is stored as no zero points, and should be as uint8 [24, 3]"),
        (
            quantised(UP, rows, Form(4, 96, symmetric=False)),
            "is stored as float16 [24, 1] scales, and should be as float16 [24, 3]",
        ),
    ):
        assert changed_integers(UP, changed, right) == f"weight {UP} {message}"
