"""A checkpoint that is damaged or cannot be expressed: one line that names it, exit code 3, and nothing left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alize.building import build
from alize.models.checkpoint import Checkpoint
from alize.validate.judge import Budget
from tests.builds.conftest import Alize
from tests.tiny import edit_config, edit_tensor, tiny_checkpoint, write_json

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
DOWN = "model.layers.2.mlp.down_proj.weight"  # in the second shard
MATRIX = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
UNSAID = "NaN in the embedding of a token that nobody says"
GENEROUS = Budget(quantisation_kl=1e3, quantisation_kl_max=1e3, runtime_kl=1e3, runtime_kl_max=1e3)

each_target = pytest.mark.parametrize("target", ["openvino", "onnxruntime"])


def tensor(folder: Path, name: str) -> torch.Tensor:
    return Checkpoint.open(folder).tensor(name).clone()


def put(folder: Path, name: str, place: tuple[int, ...], value: float) -> None:
    changed = tensor(folder, name)
    changed[place] = value
    edit_tensor(folder, name, changed)


def point(folder: Path, name: str, file: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][name] = file
    write_json(folder / INDEX, index)


def shorten(folder: Path, by: int) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:-by])


def grow(folder: Path) -> None:
    with (folder / SHARD).open("ab") as shard:
        shard.write(b"\0")


def own_layout(folder: Path) -> None:
    (folder / "config.json").rename(folder / "params.json")


def rename_dtype(folder: Path) -> None:
    """A dtype that no library knows, of the same length as F32."""
    path = folder / SHARD
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F77"'))


Spoil = Callable[[Path], object]

SPOILT: dict[str, tuple[Spoil, list[str]]] = {
    # name -> how the checkpoint is spoilt, what the line must say
    "missing shard": (lambda folder: (folder / SHARD).unlink(), [SHARD, "missing shard", "fetch it"]),
    "truncated shard": (lambda folder: shorten(folder, 1), [SHARD, "truncated", "bytes", "fetch the file again"]),
    "shard cut in its header": (lambda folder: shorten(folder, 10**5), [SHARD, "fetch the file again"]),
    "empty shard": (lambda folder: (folder / SHARD).write_bytes(b""), [SHARD, "0 bytes", "truncated"]),
    "shard with a tail": (grow, [SHARD, "longer than its header says", "fetch the file again"]),
    "index to no file": (lambda folder: point(folder, DOWN, "model-00003.safetensors"), ["model-00003.safetensors", DOWN]),
    "index to another shard": (
        lambda folder: point(folder, DOWN, "model-00001-of-00002.safetensors"),
        [INDEX, "model-00001-of-00002.safetensors", DOWN, "does not", "fetch both files again"],
    ),
    "index out of the folder": (lambda folder: point(folder, DOWN, "../x.safetensors"), ["../x.safetensors", "missing shard"]),
    "index that is no JSON": (
        lambda folder: (folder / INDEX).write_text("{"),
        [INDEX, "not readable JSON", "fetch the file again"],
    ),
    "index with a tensor left out": (lambda folder: drop(folder, DOWN), [DOWN, "missing", "fetch the checkpoint again"]),
    "unexpected tensor": (
        lambda folder: add(folder, "model.layers.2.extra.weight"),
        ["unexpected tensor model.layers.2.extra.weight"],
    ),
    "wrong shape": (
        lambda folder: edit_tensor(folder, DOWN, tensor(folder, DOWN)[:, :-1].contiguous()),
        [SHARD, DOWN, "[32, 55]", "[32, 56]", "not of the same model"],
    ),
    "transposed": (
        lambda folder: edit_tensor(folder, DOWN, tensor(folder, DOWN).T.contiguous()),
        [DOWN, "[56, 32]", "config.json asks for [32, 56]"],
    ),
    "integers": (
        lambda folder: edit_tensor(folder, DOWN, tensor(folder, DOWN).to(torch.int32)),
        [DOWN, "I32", "F64, F32, F16, BF16"],
    ),
    "8-bit floats": (
        lambda folder: edit_tensor(folder, DOWN, tensor(folder, DOWN).to(torch.float8_e4m3fn)),
        [DOWN, "F8_E4M3", "F64, F32, F16, BF16"],
    ),
    "unknown dtype": (rename_dtype, [SHARD, "unknown dtype F77"]),
    "unknown architecture": (
        lambda folder: edit_config(folder, model_type="llama"),
        ["model_type 'llama' is not one of ministral, ministral3, mistral, mixtral"],
    ),
    "another class": (
        lambda folder: edit_config(folder, architectures=["MistralForSequenceClassification"]),
        ["MistralForSequenceClassification", "only MistralForCausalLM"],
    ),
    "no architecture": (lambda folder: edit_config(folder, model_type=...), ["model_type None is not one of ministral"]),
    "unknown key": (lambda folder: edit_config(folder, attention_sinks=4), ["unknown key attention_sinks = 4", "remove it"]),
    "unknown rope": (
        lambda folder: edit_config(folder, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}),
        ["rope_parameters", "'yarn'", 'only "default"'],
    ),
    "another activation": (lambda folder: edit_config(folder, hidden_act="gelu"), ["hidden_act = 'gelu'", "only 'silu'"]),
    "more layers than tensors": (
        lambda folder: edit_config(folder, num_hidden_layers=4),
        ["tensor model.layers.3.", "is missing"],
    ),
    "a vocabulary of another size": (lambda folder: edit_config(folder, vocab_size=321), [EMBEDDING, "[320, 32]", "[321, 32]"]),
    "heads that do not divide": (lambda folder: edit_config(folder, num_key_value_heads=3), ["4 query heads, 3 key/value heads"]),
    "a config without sense": (
        lambda folder: edit_config(folder, hidden_size="wide"),
        ["hidden_size is 'wide'", "not a whole number"],
    ),
    "quantised": (
        lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
        ["quantization_config (gptq)", "give the original model"],
    ),
    "Mistral's own layout": (own_layout, ["params.json", "only the Hugging Face layout is read"]),
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        ["has no config.json", "give a Hugging Face checkpoint folder"],
    ),
    "no weights": (
        lambda folder: remove(folder, "*.safetensors*"),
        ["no model.safetensors", "give a folder that holds the weights"],
    ),
    "no index": (lambda folder: (folder / INDEX).unlink(), ["2 shards", f"no {INDEX}", "fetch the index too"]),
}

NO_NUMBERS: dict[str, tuple[str, tuple[int, ...], float]] = {
    "NaN in a matrix": (DOWN, (3, 4), float("nan")),
    "infinity in a matrix": (DOWN, (3, 4), float("-inf")),
    "NaN in a norm": ("model.layers.0.input_layernorm.weight", (31,), float("nan")),
    "NaN in the head": ("lm_head.weight", (300, 0), float("nan")),
    UNSAID: (EMBEDDING, (319, 0), float("nan")),
    "infinity in the embedding of a token that nobody says": (EMBEDDING, (319, 0), float("inf")),
}


def drop(folder: Path, name: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    write_json(folder / INDEX, index)


def add(folder: Path, name: str) -> None:
    point(folder, name, SHARD)
    edit_tensor(folder, name, torch.ones(3))


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


@pytest.fixture
def refused(alize: Alize, tmp_path: Path) -> Callable[..., str]:
    """Builds the checkpoint and returns the one line that refuses it, having looked for what was left behind."""

    def run(checkpoint: Path, *words: str, code: int = 3) -> str:
        (tmp_path / "place").mkdir()
        ran = alize("build", checkpoint, "-o", tmp_path / "place" / "new" / "out", "--quiet", *words)
        assert (ran.code, ran.out) == (code, "")
        assert ran.err.count("\n") == 1, ran.err
        assert list((tmp_path / "place").iterdir()) == []
        return ran.err.removeprefix("alize: error: ")

    return run


@pytest.mark.parametrize("name", SPOILT)
def test_a_damaged_checkpoint_is_refused_by_name(name: str, refused: Callable[..., str], tmp_path: Path) -> None:
    spoil, said = SPOILT[name]
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", window=6)
    spoil(checkpoint)
    line = refused(checkpoint, "--target", "onnxruntime")
    for words in said:
        assert words in line


@pytest.mark.parametrize(
    ("target", "name"), [*(("onnxruntime", name) for name in NO_NUMBERS), ("openvino", "NaN in a matrix"), ("openvino", UNSAID)]
)
def test_weights_that_are_no_numbers_are_refused_by_name(
    target: str, name: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    weight, place, value = NO_NUMBERS[name]
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", window=6)
    put(checkpoint, weight, place, value)
    line = refused(checkpoint, "--target", target)
    assert f"tensor {weight} holds {value} at element" in line
    assert "fetch the checkpoint again" in line


def test_weights_that_overflow_are_refused_by_name(refused: Callable[..., str], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", window=6)
    put(checkpoint, EMBEDDING, (319, 0), 1e5)
    line = refused(checkpoint, "--target", "onnxruntime", "--weights", "fp16")
    assert f"{EMBEDDING} does not fit in torch.float16: a value overflows; use --weights bf16 or fp32" in line


@each_target
def test_integers_of_weights_that_are_none_are_refused_by_name(target: str, refused: Callable[..., str], tmp_path: Path) -> None:
    """A scale beyond float16, and a value that is no number, in a weight that is rounded."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", window=6)
    put(checkpoint, MATRIX, (3, 5), 6e6)
    line = refused(checkpoint, "--target", target, "--weights", "int4")
    assert line.startswith(f"{MATRIX} needs a scale of ") and "float16 ends at 65504: use --weights bf16 or fp32" in line
    put(checkpoint, MATRIX, (3, 5), torch.nan)
    shutil.rmtree(tmp_path / "place")
    line = refused(checkpoint, "--target", target, "--weights", "int4")
    assert f"tensor {MATRIX} holds" in line and "fetch the checkpoint again" in line


@pytest.mark.parametrize(("target", "weights"), [("openvino", "int4"), ("onnxruntime", "int8")])
def test_zeros_and_denormals_are_rounded_like_any_other(target: str, weights: str, tmp_path: Path) -> None:
    """A group of zeros, one of float32's denormals, and one whose scale is a denormal of float16: all are what the reference
    rounds them to."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", window=6)
    for row, value in enumerate((0.0, 1e-41, 2e-6, -3e-7)):
        put(checkpoint, MATRIX, (row,), value)
    manifest = build(str(checkpoint), output=tmp_path / "out", target=target, weights=weights, group_size="32", budget=GENEROUS)
    assert manifest.validation.verdict == "pass"


@pytest.mark.parametrize("source", ["nowhere/at/all", ""])
def test_no_such_folder(source: str, alize: Alize, tmp_path: Path) -> None:
    ran = alize("build", source, "-o", tmp_path / "out", "--quiet")
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert "no such folder" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_json_too(alize: Alize, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    (checkpoint / SHARD).unlink()
    ran = alize("build", checkpoint, "-o", tmp_path / "out", "--quiet", "--json")
    assert json.loads(ran.out)["error"]["type"] == "CorruptCheckpoint"
    assert json.loads(ran.out)["error"]["exit_code"] == ran.code == 3


def test_a_head_size_that_the_engine_lacks(refused: Callable[..., str], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", head_size=12)
    line = refused(checkpoint, "--target", "onnxruntime", code=4)
    assert "layers.0.self_attn has head size 12, the engine takes multiples of 8 only: build for another target" in line
