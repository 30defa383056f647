"""The options of the command line. Nothing is imported here that --help would have to wait for."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from alize import __version__
from alize.errors import UsageError

__all__ = ["TARGETS", "parse"]

TARGETS = ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
_WEIGHTS = {"f32": "fp32", "f16": "fp16"} | {name: name for name in ("fp32", "fp16", "bf16", "int8", "int4", "mixed")}
_GROUPS = ("128", "64", "32", "channel")
_USUAL_SECONDS = 300  # alize.validate.cases.USUAL_SECONDS, whose import --help cannot wait for

_EXIT_CODES = """\
exit codes:
  0  done                                  6  the artifact is refused (changed, unknown, not validated)
  1  a defect of alize                     7  a package, driver or device is missing
  2  wrong usage                           8  a running session was asked for what it cannot do
  3  the checkpoint cannot be read       130  Ctrl-C; 143 SIGTERM, 129 SIGHUP
  4  the build could not finish          141  whoever read the output went away
  5  the validation failed

An error is one line on stderr. With --json it is also {"error": {"type", "message", "exit_code"}} on stdout.
"""


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options, with `command` the name of the command. Raises UsageError; SystemExit for --help and --version."""
    options = _parser().parse_args(words)
    if options.command is None:
        raise UsageError(
            "no command given: build, validate, inspect, run, chat, tune, targets or demo-model (see `alize --help`)"
        )
    return options


def _parser() -> _Parser:
    parser = _Parser(
        prog="alize",
        description="Compile Mistral-family language models for the machine that will run them, prove them, seal them, run them.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"alize {__version__}")
    _add_common(parser, default=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, help_text: str, *fillers: Callable[[argparse.ArgumentParser], None]) -> None:
        command = commands.add_parser(
            name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.", allow_abbrev=False
        )
        for fill in fillers:
            fill(command)
        _add_common(command, default=argparse.SUPPRESS)

    add("build", "compile a checkpoint, validate it and seal it as an artifact", _add_build)
    add("validate", "measure an artifact on this machine and judge it", _add_artifact, _add_validate)
    add("inspect", "show what an artifact is, without loading it", _add_artifact, _add_inspect)
    add("run", "continue a prompt; only the model's text goes to stdout", _add_artifact, _add_prompt, _add_sampling, _add_load)
    add("chat", "talk with a model; /reset starts over, /exit or Ctrl-D leaves", _add_artifact, _add_sampling, _add_load)
    add("tune", "find the fastest settings of an artifact on this device, and keep them", _add_artifact, _add_tune)
    add("targets", "tell what this machine can build and run, and what is missing for the rest")
    add("demo-model", "write a real 135M checkpoint to try alize with", _add_demo)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, default: bool | str) -> None:
    group = parser.add_argument_group("for every command")
    group.add_argument("--json", action="store_true", default=default, help="write the result as JSON on stdout, for machines")
    group.add_argument("-q", "--quiet", action="store_true", default=default, help="no progress and no summary on stderr")
    group.add_argument("--traceback", action="store_true", default=default, help="show where an error was raised")


def _add_artifact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="folder of a sealed artifact")


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="checkpoint folder, or hub id (organisation/name)")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="the artifact (default: NAME-TARGET in this folder)")
    parser.add_argument(
        "--target", type=_target, default="openvino", metavar="TARGET", help=f"{' or '.join(TARGETS)} (default: openvino)"
    )
    parser.add_argument("--device", help="device of the target: cpu, gpu, cuda (default: cpu, of TensorRT gpu)")
    parser.add_argument("--sm", metavar="LIST", help="of TensorRT: compute capabilities to build engines for, as 80,89")
    parser.add_argument(
        "--capacity", type=int, metavar="TOKENS", help="of TensorRT: what caches without a window hold (default: 4096)"
    )
    parser.add_argument("--batch", type=int, metavar="ROWS", help="of TensorRT: rows of a session at most (default: 4)")
    parser.add_argument(
        "--weights",
        type=_weights,
        metavar="TYPE",
        help="fp32, fp16, bf16, int8, int4 or mixed (default: what the checkpoint holds)",
    )
    parser.add_argument(
        "--bits", type=_bits, metavar="B", help="of mixed: bits a weight, spent on int8 where it lowers KL most (default: 5)"
    )
    parser.add_argument(
        "--group-size",
        choices=_GROUPS,
        help="of integers: weights that share a scale (default: channel for int8, 128 for int4 and what a mix has in int4)",
    )
    parser.add_argument("--asymmetric", action="store_true", help="of integers: a zero point for each group")
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const="built-in",
        metavar="FILE",
        help="of integers: round for what a text brings about, a file of it or without FILE the text that comes with alize",
    )
    parser.add_argument(
        "--experts", choices=("apart", "tiled", "gathered"), help="form of a mixture of experts (default: what suits the device)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id (default: main)")
    _add_adapter(parser, "PEFT LoRA adapter that is merged into the weights")
    parser.add_argument("--force", action="store_true", help="replace an artifact that is there, once the new one is sealed")
    parser.add_argument(
        "--no-resume", action="store_true", help="start over where a build was interrupted, and keep nothing of this one if it is"
    )
    parser.add_argument(
        "--quantisation-budget",
        type=_nats,
        metavar="KL",
        help="mean KL in nats that rounding the weights may cost (default: 0.05, and 0.75 for int4 and mixed)",
    )
    parser.add_argument(
        "--max-memory",
        type=_size,
        metavar="SIZE",
        help="memory that may be used, as 8GB (default: what is available); what does not fit is run in slices of layers",
    )
    parser.add_argument("--dry-run", action="store_true", help="tell what memory, disk and time it would take, and build nothing")
    _add_budget(parser)


def _add_adapter(parser: argparse.ArgumentParser, help_text: str) -> None:
    parser.add_argument("--adapter", type=Path, metavar="DIR", help=help_text)


def _add_validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", metavar="SOURCE", help="the checkpoint, for a full comparison (default: the golden replay)")
    _add_adapter(parser, "the adapter that was merged into it, beside --source")
    _add_budget(parser)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--validation-budget",
        type=_seconds,
        metavar="SECONDS",
        help="time for the validation; what it leaves out is written down "
        f"(default: {_USUAL_SECONDS}, or as long as the minimum set takes)",
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--expect", metavar="DIGEST", help="refuse an artifact with another digest")
    parser.add_argument("--verify", choices=("none", "full"), default="none", help="full: hash every file (default: none)")


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from stdin")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loading")
    group.add_argument("--device", help="where to run (default: the device that it was built for)")
    chosen = "runtime configuration of the artifact, or tuned (default: what was tuned here, else its first)"
    group.add_argument("--configuration", metavar="NAME", help=chosen)
    group.add_argument("--expect", metavar="DIGEST", help="refuse an artifact with another digest")
    group.add_argument("--verify", choices=("stat", "full"), default="stat", help="full: hash every file at this load too")
    group.add_argument("--unsafe-skip-validation", action="store_true", help="run without a verdict for this device")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="default: 256")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (the default)")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="0 is off (the default)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1 is off (the default)")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P", help="0 is off (the default)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="the same seed draws the same tokens (default: 0)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text (may be repeated)")
    drafter = group.add_mutually_exclusive_group()
    drafter.add_argument(
        "--prompt-lookup-num-tokens", type=int, metavar="N", help="check up to N tokens a step, guessed from the text before"
    )
    drafter.add_argument(
        "--assistant-model", type=Path, metavar="ARTIFACT", help="check tokens that a smaller model with this tokenizer guesses"
    )
    group.add_argument("--num-assistant-tokens", type=int, default=5, metavar="N", help="so many at a time at most (default: 5)")


def _add_tune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="where to run (default: the device that it was built for)")
    parser.add_argument("--prompt", type=int, default=256, metavar="N", help="tokens of the prompt to tune for (default: 256)")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="tokens that follow it (default: 128)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each candidate is timed (default: 5)")
    parser.add_argument("--forget", action="store_true", help="forget what was chosen here, and search nothing")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write it")
    parser.add_argument("--window", type=int, default=0, metavar="W", help="sliding window in tokens; 0 is off (the default)")
    parser.add_argument("--mixtral", action="store_true", help="its twin with 8 experts, a Mixtral of 1.4 GB")


def _target(name: str) -> str:
    if name not in TARGETS:
        raise UsageError(f"--target {name!r} is unknown: use {' or '.join(TARGETS)}")
    return name


def _weights(name: str) -> str:
    there = ", ".join(name for name, meant in _WEIGHTS.items() if name == meant)
    if name not in _WEIGHTS:
        raise UsageError(f"--weights {name!r} is unknown: use one of {there}")
    return _WEIGHTS[name]


def _size(text: str) -> int:
    """Bytes of 8GB, 500M, 2e9: decimal units."""
    number = text.strip().lower().removesuffix("b")
    power = "kmgt".find(number[-1:]) + 1 if number else 0
    try:
        size = float(number[:-1] if power else number) * 1000**power
    except ValueError:
        size = math.nan
    if not math.isfinite(size) or size < 1:
        raise UsageError(f"--max-memory {text} must be a size like 8GB or 500M")
    return int(size)


def _bits(text: str) -> float:
    return _amount(text, "--bits", "bits a weight")


def _seconds(text: str) -> float:
    return _amount(text, "--validation-budget", "seconds")


def _nats(text: str) -> float:
    return _amount(text, "--quantisation-budget", "nats")


def _amount(text: str, option: str, unit: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not math.isfinite(amount) or amount < 0:
        raise UsageError(f"{option} {text} must be a number of {unit}, 0 or more")
    return amount
