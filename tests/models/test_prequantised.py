"""Checkpoints in fp8, GPTQ and AWQ: bit for bit the floats that they stand for, for everybody who reads a checkpoint."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alize.building import build
from alize.drafting import stored_as
from alize.errors import CorruptCheckpoint
from alize.export.hub import export_hub
from alize.models import prequantised_fp8, tensor_info
from alize.models.checkpoint import Checkpoint
from alize.models.prequantised import format_name
from alize.models.reference import Reference
from alize.models.registry import weights_of
from alize.optimize import lower_onnxruntime
from tests.models.multimodal_checkpoints import WEIGHTS, multimodal_checkpoint
from tests.models.oracle import TOLERANCE, load_oracle
from tests.models.quantised_checkpoints import Quantise, Twins, awq, edit_all, edit_quantization, fp8, gptq, read_all, twins
from tests.tiny import edit_config

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 8, "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
FP8 = {
    "quant_method": "fp8",
    "weight_block_size": [16, 16],
    "activation_scheme": "dynamic",
    "modules_to_not_convert": ["lm_head"],
}
DOWN, UP = "model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj"  # [32,56]: 56 is no multiple of 16

FORMATS: dict[str, tuple[Quantise, dict[str, Any]]] = {
    "gptq": (gptq(), GPTQ),
    "gptq in 8 bits": (gptq(bits=8), GPTQ | {"bits": 8}),
    "gptq with one group": (gptq(group_size=-1), GPTQ | {"group_size": -1}),
    "gptq sorted by activation": (gptq(act_order=True), GPTQ | {"desc_act": True}),
    "gptq symmetric": (gptq(sym=True), GPTQ | {"sym": True, "dynamic": {"-:.*head.*": {}}}),
    "gptq symmetric in 8 bits, sorted": (
        gptq(bits=8, sym=True, act_order=True),
        GPTQ | {"bits": 8, "sym": True, "desc_act": True},
    ),
    "gptq_v2": (gptq(v2=True), GPTQ | {"checkpoint_format": "gptq_v2", "format": "gptq_v2", "method": "gptq", "rotation": None}),
    "gptq_v2 in 8 bits": (gptq(v2=True, bits=8), GPTQ | {"checkpoint_format": "GPTQ_V2", "bits": 8}),
    "gptq with bfloat16 scales": (gptq(dtype=torch.bfloat16), GPTQ),
    "awq": (awq(), AWQ | {"version": "GEMM"}),
    "awq with one group": (awq(group_size=-1), AWQ | {"group_size": -1, "backend": "autoawq"}),
    "fp8": (fp8(), FP8),
    "fp8 in blocks that are not square": (fp8(block=(8, 32)), FP8 | {"weight_block_size": [8, 32]}),
    "fp8 in blocks larger than a matrix": (fp8(block=(128, 128)), FP8 | {"weight_block_size": [128, 128]}),
    "fp8 a scale a tensor": (
        fp8(block=None, static=True, dtype=torch.bfloat16),
        FP8 | {"weight_block_size": None, "activation_scheme": "static"},
    ),
    "fp8 with powers of two": (fp8(powers=True), FP8),
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Twins]:
    """make(format, **options): one of FORMATS in a float16 tiny checkpoint."""

    def twin(name: str, **options: Any) -> Twins:
        quantise, config = FORMATS[name]
        return twins(tmp_path / "twins", quantise, config, **{"window": 6, "layers": 2, "dtype": "float16"} | options)

    return twin


def sequence(length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(length).integers(0, 320, length)


@pytest.mark.parametrize("name", FORMATS)
def test_every_bit(name: str, make: Callable[..., Twins]) -> None:
    made = make(name)
    checkpoint, floats = Checkpoint.open(made.quantised), Checkpoint.open(made.floats)
    assert set(checkpoint.tensors) == set(floats.tensors)
    for tensor, info in floats.tensors.items():
        expected, found = floats.tensor(tensor), checkpoint.tensor(tensor)
        dtype = torch.bfloat16 if name == "fp8 with powers of two" and tensor.endswith("proj.weight") else expected.dtype
        assert (found.dtype, found.shape, checkpoint.tensors[tensor].shape) == (dtype, expected.shape, info.shape), tensor
        assert torch.equal(found.to(expected.dtype), expected), tensor
        checkpoint.check_finite(tensor)
    assert weights_of(checkpoint) == weights_of(floats)


@pytest.mark.parametrize("name", FORMATS)
def test_logits(name: str, make: Callable[..., Twins]) -> None:
    """Those of the float model, to the bit, and transformers' of that model."""
    made = make(name, head=name.startswith("gptq"))
    row = sequence(20)
    found, expected = (Reference(Checkpoint.open(folder)).run([row]).logits[0] for folder in (made.quantised, made.floats))
    assert expected.std() > 0.5
    np.testing.assert_array_equal(found, expected)
    with torch.no_grad():
        theirs = load_oracle(made.floats)(input_ids=torch.from_numpy(row)[None]).logits[0].numpy()
    np.testing.assert_allclose(found, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gptq sorted by activation", "awq", "fp8"])
def test_experts(name: str, make: Callable[..., Twins]) -> None:
    made = make(name, experts=4, dtype="bfloat16")
    row = sequence(20)
    found, expected = (Reference(Checkpoint.open(folder)).run([row]).logits[0] for folder in (made.quantised, made.floats))
    np.testing.assert_array_equal(found, expected)
    weight = weights_of(Checkpoint.open(made.quantised))["model.layers.0.mlp.experts.up_proj"]
    stacks = [Checkpoint.open(folder).read(weight, torch.float32) for folder in (made.quantised, made.floats)]
    assert torch.equal(*stacks) and stacks[0].shape == (4, 56, 32)


@pytest.mark.parametrize("name", ["gptq", "awq", "fp8"])
def test_blocks_of_rows_are_the_whole_matrix(name: str, make: Callable[..., Twins], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are dequantised a few at a time; the block of a tiny matrix would be all of it."""
    checkpoint = Checkpoint.open(make(name).quantised)
    whole = checkpoint.tensor(f"{UP}.weight")
    monkeypatch.setattr(tensor_info, "BLOCK", 24 * 32)  # 24 rows of 56
    assert torch.equal(checkpoint.tensor(f"{UP}.weight"), whole)


@pytest.mark.parametrize("name", ["gptq", "gptq in 8 bits", "awq"])
def test_half_precision_is_what_half_precision_kernels_compute(name: str, make: Callable[..., Twins]) -> None:
    """scale * (q - z) is exact in float32, so rounding it is the one rounding that float16 arithmetic makes."""
    made = make(name)
    matrix = Checkpoint.open(made.quantised).tensor(f"{UP}.weight")
    scale = read_all(made.quantised)[f"{UP}.scales"].T.repeat_interleave(16 if name != "awq" else 8, 1)[:, :32]
    integer = (matrix / scale.float()).round()
    assert torch.equal(matrix.double(), scale.double() * integer.double())
    assert torch.equal(matrix.half(), scale * integer.half())


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("fp8")])
def test_transformers_dequantises_the_same(name: str, make: Callable[..., Twins]) -> None:
    module = pytest.importorskip("transformers.integrations.finegrained_fp8")
    made, block = make(name), FORMATS[name][1]["weight_block_size"]
    stored, checkpoint = read_all(made.quantised), Checkpoint.open(made.quantised)
    if not hasattr(module, "_dequantize_fp8_weight"):
        pytest.skip("this version of transformers has no function for it")
    for tensor in (f"{UP}.weight", f"{DOWN}.weight"):
        theirs: Tensor = module._dequantize_fp8_weight(stored[tensor], stored[f"{tensor}_scale_inv"], block, torch.float32)
        assert torch.equal(checkpoint.tensor(tensor).float(), theirs), tensor
    tensor, operation = "model.layers.0.self_attn.q_proj.weight", module.Fp8Dequantize(None)  # takes whole blocks only
    theirs = operation._dequantize_one(stored[tensor], stored[f"{tensor}_scale_inv"], torch.float32)
    assert torch.equal(checkpoint.tensor(tensor).float(), theirs)


@pytest.mark.parametrize("name", ["gptq", "awq", "fp8"])
def test_a_stack_is_made_one_matrix_at_a_time(name: str, make: Callable[..., Twins], monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert is gone before the next is dequantised, and a single matrix is not copied again."""
    checkpoint = Checkpoint.open(make(name, experts=4).quantised)
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    read = tensor_info.Packed.read

    def watched(self: tensor_info.Packed, view: tensor_info.View) -> Tensor:
        nonlocal most
        most = max(most, sum(one() is not None for one in alive))
        matrix = read(self, view)
        alive.append(weakref.ref(matrix))
        return matrix

    monkeypatch.setattr(tensor_info.Packed, "read", watched)
    weights = weights_of(checkpoint)
    checkpoint.read(weights["model.layers.0.mlp.experts.up_proj"], torch.float32)
    assert (len(alive), most) == (4, 0)
    single = checkpoint.read(weights["model.layers.0.self_attn.q_proj.weight"], torch.float32)
    assert alive[-1]() is single


def test_the_precision_that_keeps_every_number(make: Callable[..., Twins], tmp_path: Path) -> None:
    made = make("fp8 with powers of two", dtype="bfloat16")
    assert stored_as(Checkpoint.open(made.quantised)) == "bf16"
    for exponent in (-118, 120):  # beyond what bfloat16 holds of every product
        name = f"{UP}.weight_scale_inv"
        edit_all(made.quantised, lambda tensors, e=exponent, n=name: tensors[n].fill_(2.0**e))
        assert Checkpoint.open(made.quantised).tensors[f"{UP}.weight"].dtype == "F32"
    quantise, config = FORMATS["gptq"]
    assert stored_as(Checkpoint.open(twins(tmp_path / "other", quantise, config, dtype="float16").quantised)) == "fp32"


def test_the_limits_of_bfloat16() -> None:
    """Every number of e4m3 times the smallest and the largest scale that counts as exact; a step further not all are normal."""
    lowest, highest = prequantised_fp8.EXACT_IN_BF16
    values = torch.from_numpy(prequantised_fp8.VALUES).double()
    values = values[values.isfinite() & (values != 0)]
    for scale in (lowest, 2.0**-20, 1.0, highest):
        assert torch.equal((values * scale).bfloat16().double(), values * scale)
        assert (values * scale).abs().min() >= torch.finfo(torch.bfloat16).tiny
    assert (values * lowest / 2).abs().min() < torch.finfo(torch.bfloat16).tiny
    assert (values * highest * 2).bfloat16().isinf().any()


def test_identity_is_of_what_is_stored(make: Callable[..., Twins]) -> None:
    made = make("gptq sorted by activation")
    checkpoint = Checkpoint.open(made.quantised)
    seen: list[int] = []
    identities = [checkpoint.sha256(advance=seen.append), Checkpoint.open(made.floats).sha256()]
    assert sum(seen) == sum(info.size for info in checkpoint.tensors.values())
    assert sum(seen) == sum(tensor.nbytes for tensor in read_all(made.quantised).values())
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        edit_all(made.quantised, lambda tensors, part=part: tensors[f"{UP}.{part}"][:2].add_(1))
        identities.append(Checkpoint.open(made.quantised).sha256())
    edit_quantization(made.quantised, checkpoint_format="gptq_v2")
    identities.append(Checkpoint.open(made.quantised).sha256())
    assert len(set(identities)) == len(identities)


def test_a_bias_of_zeros_is_left_out(make: Callable[..., Twins]) -> None:
    made = make("gptq")
    edit_all(made.quantised, lambda tensors: tensors.update({f"{UP}.bias": torch.zeros(56, dtype=torch.float16)}))
    checkpoint = Checkpoint.open(made.quantised)
    weights_of(checkpoint)
    assert sum(info.size for info in checkpoint.tensors.values()) == sum(x.nbytes for x in read_all(made.quantised).values())
    edit_all(made.quantised, lambda tensors: tensors[f"{UP}.bias"][7:].add_(1))
    with pytest.raises(CorruptCheckpoint, match=rf"unexpected tensor {UP}\.bias"):
        weights_of(Checkpoint.open(made.quantised))


def test_a_multimodal_checkpoint(tmp_path: Path) -> None:
    """As Ministral 3 is published: one scale a tensor, activations' scales, vision tower and head left as they are."""
    floats, quantised = tmp_path / "floats", tmp_path / "quantised"
    multimodal_checkpoint(floats, "ministral3")
    shutil.copytree(floats, quantised)
    tensors, quantise = load_file(floats / WEIGHTS), fp8(block=None, static=True, dtype=torch.bfloat16)
    packed = dict(tensors)
    for name in [name for name in tensors if name.startswith("language_model.model.") and name.endswith("_proj.weight")]:
        parts, tensors[name] = quantise(packed.pop(name))
        packed |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
    save_file(tensors, floats / WEIGHTS, metadata={"format": "pt"})
    save_file(packed, quantised / WEIGHTS, metadata={"format": "pt"})
    listed = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    config = FP8 | {"weight_block_size": None, "activation_scheme": "static", "modules_to_not_convert": listed}
    edit_config(quantised, quantization_config=config)
    rows = [Reference(Checkpoint.open(folder)).run([sequence(20)]).logits[0] for folder in (floats, quantised)]
    assert rows[0].std() > 0.1
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (GPTQ | {"bits": 8}, "gptq-int8-g16"),
        (GPTQ | {"group_size": -1}, "gptq-int4-channel"),
        ({"quant_method": "awq"}, "awq-int4-g128"),
        (FP8, "fp8-16x16"),
        (FP8 | {"weight_block_size": None}, "fp8-tensor"),
        ({"quant_method": "fp8"}, "fp8-128x128"),
    ],
)
def test_a_format_has_a_name(config: dict[str, Any], name: str) -> None:
    """For the manifest; where a key is missing, what it means by default."""
    assert format_name(config) == name


@pytest.mark.parametrize("name", ["gptq sorted by activation", "awq", "fp8 a scale a tensor"])
def test_through_the_hub_to_a_target(name: str, make: Callable[..., Twins], tmp_path: Path) -> None:
    made = make(name)
    files = []
    for folder in (made.quantised, made.floats):
        place = tmp_path / "lowered" / folder.name
        place.mkdir(parents=True)
        lower_onnxruntime.lower(export_hub(Checkpoint.open(folder)), place, weights="fp32")
        files.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert files[0] == files[1]


def test_a_build(make: Callable[..., Twins], tmp_path: Path) -> None:
    made = make("gptq", tokenizer=True)
    manifest = build(str(made.quantised), output=tmp_path / "artifact", target="onnxruntime", budget_seconds=60)
    assert (manifest.target.weights, manifest.validation.verdict) == ("fp32", "pass")
    assert manifest.source.sha256 == Checkpoint.open(made.quantised).sha256()
    assert manifest.source.quantised == "gptq-int4-g16"
    written = json.loads((tmp_path / "artifact" / "config.json").read_text())
    assert "quantization_config" not in written and written["model_type"] == "mistral"
