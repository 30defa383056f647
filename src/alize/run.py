"""`alize run` and `alize chat`: from a prompt to streamed text. Text goes to `out`, everything else to stderr."""

import argparse
import contextlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import FrameType
from typing import Any, TextIO

from alize.conversation import Conversation, Summary, answer
from alize.errors import AlizeError, UsageError
from alize.inspect_artifact import verdict_line
from alize.runtimes.assistant import AssistantModel
from alize.runtimes.generate import GenerationOptions
from alize.runtimes.model import Model, load
from alize.runtimes.prompt_lookup import PromptLookup
from alize.runtimes.speculation import Drafter

__all__ = ["chat", "run"]


def run(options: argparse.Namespace, out: TextIO) -> None:
    """Continues `options.prompt` once. Raises what `load`, `generate` and the tokenizer raise."""
    settings = _settings(options)
    prompt = _prompt(options.prompt)
    with _loaded(options) as model, model.session() as session, _drafter(options, model) as drafter:
        tokenizer = model.tokenizer
        tokens = tokenizer.encode_chat([{"role": "user", "content": prompt}]) if options.chat else tokenizer.encode(prompt)
        write = _Writer(out, machine=options.json)
        done = answer(model, session, tokens, settings, stop=options.stop, drafter=drafter, write=write.text)
        write.end(done.summary, quiet=options.quiet)


def chat(options: argparse.Namespace, out: TextIO) -> None:
    """Reads turns from stdin until /exit or its end. A refused turn ends the program only where nobody sits at a terminal."""
    settings = _settings(options)
    terminal = sys.stdin.isatty()
    with _loaded(options) as model, model.session() as session, _drafter(options, model) as drafter:
        conversation = Conversation(model, session, settings, stop=options.stop, drafter=drafter)
        write = _Writer(out, machine=options.json)
        for turn in _turns(terminal=terminal):
            if turn == "/exit":
                break
            if turn == "/reset":
                conversation.reset()
                continue
            try:
                with _interruptible() as interrupted:
                    summary = conversation.ask(turn, write=write.text, interrupted=interrupted)
            except AlizeError as error:
                if not terminal:
                    raise
                print(f"alize: {error} (/reset starts over)", file=sys.stderr)
                continue
            write.end(summary, quiet=options.quiet, newline=True)


class _Writer:
    """Text as it comes: raw, or one JSON object a line with the one key text, end or error."""

    def __init__(self, out: TextIO, *, machine: bool) -> None:
        self._out, self._machine = out, machine

    def text(self, piece: str) -> None:
        self._out.write(_line({"text": piece}) if self._machine else piece)
        self._out.flush()

    def end(self, summary: Summary, *, quiet: bool, newline: bool = False) -> None:
        if self._machine:
            self._out.write(_line({"end": {name: value for name, value in asdict(summary).items() if value is not None}}))
        elif newline or self._out.isatty():
            self._out.write("\n")  # a pipe gets the model's text to the letter
        self._out.flush()
        if not quiet:
            print(f"alize: {summary.line()}", file=sys.stderr, flush=True)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def _loaded(options: argparse.Namespace) -> Iterator[Model]:
    model = load(
        options.artifact,
        device=options.device,
        expect=options.expect,
        verify=options.verify,
        configuration=options.configuration,
        unsafe_skip_validation=options.unsafe_skip_validation,
    )
    with model:
        if not options.quiet:
            print(f"alize: {verdict_line(options.artifact, model.manifest)}", file=sys.stderr, flush=True)
        yield model


@contextlib.contextmanager
def _drafter(options: argparse.Namespace, model: Model) -> Iterator[Drafter | None]:
    if options.prompt_lookup_num_tokens is not None:
        yield PromptLookup(num_tokens=options.prompt_lookup_num_tokens)
    elif options.assistant_model is not None:
        with (
            load(options.assistant_model, device=options.device, verify=options.verify) as assistant,
            AssistantModel(assistant, model, num_tokens=options.num_assistant_tokens) as drafter,
        ):
            yield drafter
    else:
        yield None


def _settings(options: argparse.Namespace) -> GenerationOptions:
    return GenerationOptions(
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=options.seed,
    )


def _prompt(argument: str) -> str:
    """The prompt, from stdin for `-`: there a last line end is the pipe's, not the prompt's."""
    if argument != "-":
        return _checked(argument)
    return _checked(sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n").removesuffix("\r"))


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not UTF-8 at letter {error.start + 1}: convert it first") from error
    if not text:
        raise UsageError("the prompt is empty: give at least one letter")
    return text


def _turns(*, terminal: bool) -> Iterator[str]:
    """Lines of stdin without their ends, empty ones left out; with line editing at a terminal."""
    while True:
        try:
            line = _ask() if terminal else sys.stdin.readline()
        except EOFError:
            return
        if not terminal and not line:
            return
        if line.strip():
            yield _checked(line.rstrip("\r\n"))


def _ask() -> str:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  importing it gives input() its editing keys
    with contextlib.redirect_stdout(sys.__stdout__):  # its descriptor leads to stderr now: the prompt is no result
        return input("> ")


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Makes the first Ctrl-C a question that can be asked between tokens; the second one is the usual interrupt."""
    pressed = threading.Event()

    def press(_number: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
