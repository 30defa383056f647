"""Quantised checkpoints that cannot be dequantised exactly: each is refused by name, when it is opened or when it is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models.checkpoint import Checkpoint
from alize.models.registry import weights_of
from tests.models.quantised_checkpoints import Quantise, awq, edit_all, edit_quantization, fp8, gptq, twins
from tests.models.test_prequantised import AWQ, FP8, GPTQ, UP
from tests.tiny import edit_config, tiny_checkpoint

FORMATS: dict[str, tuple[Quantise, dict[str, Any]]] = {
    "gptq": (gptq(), GPTQ),
    "gptq sorted": (gptq(act_order=True), GPTQ | {"desc_act": True}),
    "awq": (awq(), AWQ),
    "fp8": (fp8(), FP8),
    "fp8 per tensor": (fp8(block=None), FP8 | {"weight_block_size": None}),
}

Make = Callable[[str], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(format): the folder of a tiny checkpoint."""
    return lambda name: twins(tmp_path / "twins", *FORMATS[name], layers=2, dtype="float16").quantised


def read_everything(folder: Path) -> None:
    """What a build does with a source before it makes anything of it, and then with its weights."""
    checkpoint = Checkpoint.open(folder)
    weights_of(checkpoint)
    for name in checkpoint.tensors:
        checkpoint.check_finite(name)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_refused_before_it_is_spoilt(name: str, make: Make) -> None:
    read_everything(make(name))


METHODS: dict[str, dict[str, Any]] = {
    method: {"quant_method": method}
    for method in """aqlm vptq quanto eetq higgs hqq compressed-tensors fbgemm_fp8 torchao bitnet spqr quark fp_quant auto-round
    mxfp4 nvfp4 mxfp8 metal fouroversix sinq gemma gguf something-new""".split()  # noqa: SIM905
} | {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    r"\(bitsandbytes\)": {"load_in_8bit": True},
    "no quant_method": {"bits": 4},
}


@pytest.mark.parametrize("named", METHODS)
def test_other_methods(named: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, config={"quantization_config": METHODS[named]})
    with pytest.raises(UnsupportedModel, match=rf"quantization_config .*{named}.*only fp8, gptq, awq.*give the original model"):
        Checkpoint.open(folder)


VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    # format, changes of its configuration, what the message says
    "marlin": ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
    "marlin, as transformers 5 writes it": ("gptq", {"checkpoint_format": ..., "format": "marlin"}, "'marlin'"),
    "marlin, as AutoGPTQ said it": ("gptq", {"is_marlin_format": True}, "is_marlin_format = True"),
    "bitblas": ("gptq", {"checkpoint_format": "bitblas"}, "bitblas"),
    "2 bits": ("gptq", {"bits": 2}, "bits = 2 is not known, only 4 or 8 is"),
    "bits that are no number": ("gptq", {"bits": "4"}, "bits = '4'"),
    "bits left out": ("gptq", {"bits": ...}, "bits = None"),
    "words of 64 bits": ("gptq", {"pack_dtype": "int64"}, "pack_dtype = 'int64'"),
    "another algorithm's name": ("gptq", {"method": "qqq"}, "method = 'qqq'"),
    "AWQ in words of 64 bits": ("awq", {"pack_dtype": "int64"}, "pack_dtype = 'int64'"),
    "bits by module": ("gptq", {"dynamic": {"+:.*down.*": {"bits": 8}}}, "a format of their own"),
    "a new key of GPTQ": ("gptq", {"rotation": "hadamard"}, "unknown key rotation = 'hadamard'"),
    "desc_act that is no flag": ("gptq", {"desc_act": "static"}, "desc_act = 'static'"),
    "gemv": ("awq", {"version": "GEMV"}, "version = 'gemv' is not known, only 'gemm' is"),
    "gemv_fast": ("awq", {"version": "gemv_fast"}, "gemv_fast"),
    "llm-awq": ("awq", {"backend": "llm-awq"}, "backend = 'llm-awq'"),
    "without zero points": ("awq", {"zero_point": False}, "zero_point = False"),
    "AWQ in 8 bits": ("awq", {"bits": 8}, "bits = 8 is not known, only 4 is"),
    "a new key of AWQ": ("awq", {"smooth": True}, "unknown key smooth = True"),
    "scales as exponents": ("fp8", {"scale_fmt": "ue8m0"}, "scale_fmt = 'ue8m0'"),
    "experts in fp4": ("fp8", {"expert_dtype": "fp4"}, "expert_dtype = 'fp4'"),
    "embeddings": ("fp8", {"modules_to_convert": ["embed_tokens"]}, "modules_to_convert"),
    "e5m2": ("fp8", {"fmt": "e5m2"}, "fmt = 'e5m2'"),
    "another activation scheme": ("fp8", {"activation_scheme": "token"}, "activation_scheme = 'token'"),
    "a new key of fp8": ("fp8", {"rotated": True}, "unknown key rotated = True"),
    "the configuration of another format": ("gptq", {"quant_method": "awq"}, "unknown key checkpoint_format = 'gptq'"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_other_variants(name: str, make: Make) -> None:
    made, changes, said = VARIANTS[name]
    folder = make(made)
    edit_quantization(folder, **changes)
    with pytest.raises(UnsupportedModel) as refused:
        Checkpoint.open(folder)
    assert said in str(refused.value) and "give the original model" in str(refused.value)


Tensors = dict[str, Tensor]
SCALE = f"{UP}.weight_scale_inv"


def put(tensors: Tensors, name: str, place: tuple[int, ...], value: float) -> None:
    tensors[name][place] = value


def cut(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][:-1]


BROKEN: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    # format, what is done to its tensors, what the message says
    "gptq without scales": ("gptq", lambda t: t.pop(f"{UP}.scales"), f"tensor {UP}.scales is missing"),
    "gptq without zero points": ("gptq", lambda t: t.pop(f"{UP}.qzeros"), f"tensor {UP}.qzeros is missing"),
    "gptq without numbers": ("gptq", lambda t: t.pop(f"{UP}.qweight"), f"tensor {UP}.qweight is missing"),
    "gptq sorted without groups": ("gptq sorted", lambda t: t.pop(f"{UP}.g_idx"), f"{UP}.g_idx is missing, desc_act needs it"),
    "too few scales": ("gptq", lambda t: cut(t, f"{UP}.scales"), f"{UP}.scales is F16 [1, 56], 4 bits with group_size 16"),
    "too few zero points": ("gptq", lambda t: cut(t, f"{UP}.qzeros"), f"{UP}.qzeros is I32 [1, 7], 4 bits with group_size 16"),
    "too few groups": ("gptq", lambda t: cut(t, f"{UP}.g_idx"), f"{UP}.g_idx is I32 [31]"),
    "zero points that are no integers": (
        "gptq",
        lambda t: t.update({f"{UP}.qzeros": t[f"{UP}.qzeros"].float()}),
        f"{UP}.qzeros is F32 [2, 7], 4 bits with group_size 16 asks for I32 [2, 7]",
    ),
    "a matrix in both forms": (
        "gptq",
        lambda t: t.update({f"{UP}.weight": torch.ones(56, 32)}),
        f"{UP} has a quantised matrix and a weight that is not",
    ),
    "a group below 0": (
        "gptq sorted",
        lambda t: put(t, f"{UP}.g_idx", (3,), -1),
        f"{UP}.g_idx holds -1, there are groups 0 to 1",
    ),
    "a group too many": ("gptq sorted", lambda t: put(t, f"{UP}.g_idx", (3,), 2), f"{UP}.g_idx holds 2, there are groups 0 to 1"),
    "unsorted groups that should be": (
        "gptq",
        lambda t: put(t, f"{UP}.g_idx", (3,), 1),
        f"{UP}.g_idx is not in order, but desc_act",
    ),
    "a zero point that readers differ about": (
        "gptq",
        lambda t: put(t, f"{UP}.qzeros", (1, 2), -1),
        f"{UP}.qzeros holds 15, which readers of checkpoint_format gptq take for zero point 16 or 0",
    ),
    "a scale that is NaN": ("gptq", lambda t: put(t, f"{UP}.scales", (1, 2), float("nan")), f"tensor {UP}.weight holds nan"),
    "awq without scales": ("awq", lambda t: t.pop(f"{UP}.scales"), f"tensor {UP}.scales is missing"),
    "awq with too few scales": ("awq", lambda t: cut(t, f"{UP}.scales"), f"{UP}.scales is F16 [3, 56], 4 bits with group_size 8"),
    "awq with GPTQ's groups": ("awq", lambda t: t.update({f"{UP}.g_idx": torch.arange(32)}), f"{UP}.g_idx belongs to GPTQ"),
    "fp8 without scales": ("fp8", lambda t: t.pop(SCALE), f"tensor {UP}.weight has no {SCALE}"),
    "fp8 with another tool's scales": (
        "fp8 per tensor",
        lambda t: t.update({f"{UP}.weight_scale": t.pop(SCALE)}),
        f"has no {SCALE} ({UP}.weight_scale is of another tool's layout)",
    ),
    "fp8 with too few scales": ("fp8", lambda t: cut(t, SCALE), f"{SCALE} is F32 [3, 2], weight_block_size [16, 16]"),
    "fp8 with a scale a tensor": (
        "fp8",
        lambda t: t.update({SCALE: torch.ones(())}),
        f"{SCALE} is F32 [], weight_block_size [16, 16] of a [56, 32] weight asks for F32 or F16 or BF16 [4, 2]",
    ),
    "fp8 with scales a block": (
        "fp8 per tensor",
        lambda t: t.update({SCALE: torch.ones(4, 2)}),
        f"{SCALE} is F32 [4, 2], weight_block_size null asks for F32 or F16 or BF16 []",
    ),
    "fp8 scales of a float weight": (
        "fp8",
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].half()}),
        f"{SCALE} belongs to no fp8 weight",
    ),
    "NaN in fp8": (
        "fp8",
        lambda t: put(t, f"{UP}.weight", (5, 7), float("nan")),
        f"tensor {UP}.weight holds nan at element {5 * 32 + 7}",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_that_contradict_their_configuration(name: str, make: Make) -> None:
    made, change, said = BROKEN[name]
    folder = make(made)
    edit_all(folder, change)
    with pytest.raises(CorruptCheckpoint) as refused:
        read_everything(folder)
    assert said in str(refused.value), refused.value


CONTRADICTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    # format, changes of its configuration, what the message says
    "another group size": ("gptq", {"group_size": 8}, "4 bits with group_size 8 asks for"),
    "no group size": ("gptq", {"group_size": 0}, "group_size is 0"),
    "another width": ("gptq", {"bits": 8}, "8 bits with group_size 16 asks for"),
    "two formats": ("gptq", {"format": "gptq_v2"}, "contradict each other"),
    "symmetric after all": ("gptq", {"sym": True}, "but sym asks for 8"),
    "a group size that does not divide": ("awq", {"group_size": 12}, "56 inputs are no multiple of group_size 12"),
    "another block": (
        "fp8",
        {"weight_block_size": [8, 16]},
        "weight_block_size [8, 16] of a [32, 56] weight asks for F32 or F16 or BF16 [4, 4]",
    ),
    "the default block": ("fp8", {"weight_block_size": ...}, "weight_block_size [128, 128]"),
    "a block of one size": ("fp8", {"weight_block_size": [16]}, "weight_block_size is [16]"),
    "a block of nothing": ("fp8", {"weight_block_size": [0, 16]}, "weight_block_size is [0, 16]"),
    "a quantised module that should not be": (
        "fp8",
        {"modules_to_not_convert": ["mlp.up_proj"]},
        f"tensor {'model.layers.0.mlp.up_proj'}",
    ),
    "the same by its other name": ("fp8", {"ignored_layers": ["model.layers.1"]}, "ignored_layers names model.layers.1"),
    "modules that are no list": ("awq", {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert is 'lm_head'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_configurations_that_contradict_their_tensors(name: str, make: Make) -> None:
    made, changes, said = CONTRADICTIONS[name]
    folder = make(made)
    edit_quantization(folder, **changes)
    with pytest.raises(CorruptCheckpoint) as refused:
        read_everything(folder)
    assert said in str(refused.value), refused.value


def test_zero_points_of_a_mislabelled_v2(tmp_path: Path) -> None:
    """Published checkpoints exist that say gptq and store as gptq_v2: symmetric ones are found out."""
    folder = twins(tmp_path, gptq(sym=True, v2=True), GPTQ | {"sym": True}, layers=1).quantised
    with pytest.raises(CorruptCheckpoint, match=r"holds 8, which reads as zero point 9, but sym asks for 8.*checkpoint_format"):
        read_everything(folder)
    edit_quantization(folder, checkpoint_format="gptq_v2")
    read_everything(folder)


def test_no_configuration_at_all(make: Make) -> None:
    folder = make("gptq")
    edit_config(folder, quantization_config=...)
    with pytest.raises(UnsupportedModel, match=r"config\.json has no quantization_config .*quantize_config\.json"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("config", [GPTQ, AWQ, FP8 | {"weight_block_size": None}], ids=["gptq", "awq", "fp8"])
def test_nothing_is_quantised(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, config={"quantization_config": config})
    with pytest.raises(UnsupportedModel, match=r"no tensor is quantised like that"):
        Checkpoint.open(folder)


def test_null_is_none(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, config={"quantization_config": None})
    assert Checkpoint.open(folder).quantization is None


def test_no_object(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"quantization_config \(gptq\): is no object"):
        Checkpoint.open(tiny_checkpoint(tmp_path, config={"quantization_config": "gptq"}))


def test_two_that_differ(make: Make) -> None:
    folder = make("gptq")
    config = json.loads((folder / "config.json").read_text())
    edit_config(folder, model_type="mistral3", text_config=config | {"quantization_config": GPTQ | {"bits": 8}})
    with pytest.raises(UnsupportedModel, match="another one in its text_config"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["weight", "other"])
def test_fp8_that_is_no_linear_layer(name: str, make: Make) -> None:
    folder = make("fp8")
    shape, stored = ((2, 56, 32), "stack.weight") if name == "weight" else ((56, 32), "mlp.experts.down_proj")
    edit_all(folder, lambda tensors: tensors.update({stored: torch.ones(shape).to(torch.float8_e4m3fn)}))
    with pytest.raises(UnsupportedModel, match="is no matrix of a linear layer"):
        Checkpoint.open(folder)


def test_e5m2(make: Make) -> None:
    folder = make("fp8")
    edit_all(folder, lambda tensors: tensors.update({f"{UP}.weight": torch.ones(56, 32).to(torch.float8_e5m2)}))
    with pytest.raises(UnsupportedModel, match=rf"{UP}\.weight is F8_E5M2, only F8_E4M3"):
        Checkpoint.open(folder)
