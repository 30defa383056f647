"""The command line: parse, one library call, exit code. docs/cli.md is its manual.

Results go to stdout and nothing else does: what libraries print there is sent to stderr while a command runs.
"""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import TextIO

from alize.arguments import parse
from alize.errors import AlizeError

__all__ = ["main"]

_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; see `alize --help`."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(words)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # or Python complains once more when it closes stdout
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _run(words: Sequence[str]) -> int:
    machine, trace = "--json" in words, "--traceback" in words
    try:
        options = parse(words)
    except SystemExit as stop:  # --help and --version
        sys.stdout.flush()
        return _code(stop)
    except AlizeError as error:
        return _report(error, sys.stdout, machine=machine, trace=trace)
    with _results() as out:
        try:
            from alize.commands import COMMANDS

            return COMMANDS[options.command](options, out)
        except BrokenPipeError:
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001  each becomes a line and an exit code
            return _report(error, out, machine=machine, trace=trace)


def _report(error: BaseException, out: TextIO, *, machine: bool, trace: bool) -> int:
    code, message = _explain(error)
    if trace:
        traceback.print_exception(error)
    print(f"alize: error: {message}", file=sys.stderr, flush=True)
    if machine:
        record = {"type": type(error).__name__, "message": message, "exit_code": code}
        print(json.dumps({"error": record}, ensure_ascii=False), file=out, flush=True)
    return code


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, AlizeError):
        return error.exit_code, _one_line(str(error))
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED, _with_notes("interrupted", error)
    if isinstance(error, SystemExit):
        return _code(error), _with_notes(f"stopped by signal {_code(error) - 128}", error)
    what = _one_line(f"{type(error).__name__}: {error}")
    return 1, f"{what} (a defect of alize: please report it with what --traceback shows)"


def _with_notes(what: str, error: BaseException) -> str:
    """What the interrupted work had to say of itself is a note of the exception."""
    return _one_line("; ".join([what, *getattr(error, "__notes__", ())]))


def _one_line(text: str) -> str:
    """One printable line, whatever a file name or a manifest put into the message."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(text.split()))


def _code(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


@contextlib.contextmanager
def _results() -> Iterator[TextIO]:
    """The real stdout. Until the end of the block everything else that is written to stdout lands on stderr."""
    try:
        descriptor, diverted = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # a host's own stream, without a descriptor
        out = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield out
        return
    sys.stdout.flush()
    kept = os.dup(descriptor)
    os.dup2(diverted, descriptor)  # native libraries write to the descriptor
    try:
        with (
            open(kept, "w", encoding=sys.stdout.encoding, errors="replace", closefd=False) as out,
            contextlib.redirect_stdout(sys.stderr),
        ):
            yield out
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
