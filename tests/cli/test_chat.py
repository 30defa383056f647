import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alize.conversation import Conversation
from alize.errors import ContextExceeded
from alize.runtimes.assistant import SessionDrafter
from alize.runtimes.generate import GenerationOptions, generate
from alize.runtimes.model import Model, load
from alize.runtimes.session import Session

Alize = Callable[..., Any]
MakeFake = Callable[..., Path]
TEN = GenerationOptions(max_new_tokens=10)


class Spy(Session):
    """A session that keeps every token it was given."""

    def __init__(self, model: Model) -> None:
        engine = model._engine
        assert engine is not None
        super().__init__(engine.runner(1), model.info, batch=1, chunk=8, slack=8)
        self.read: list[int] = []
        self.resets = 0

    def append(self, tokens: Any, *, lengths: Any = None, keep: int = 1) -> Any:
        logits = super().append(tokens, lengths=lengths, keep=keep)
        self.read += np.asarray(tokens)[0].tolist()
        return logits

    def rewind(self, n: int) -> None:
        super().rewind(n)
        del self.read[len(self.read) - n :]

    def reset(self) -> None:
        super().reset()
        self.read = []
        self.resets += 1


@pytest.fixture
def model(artifact: Path) -> Iterator[Model]:
    with load(artifact) as model:
        yield model


def quiet(_: str) -> None:
    pass


def by_hand(model: Model, turns: list[str], options: GenerationOptions) -> tuple[list[str], list[int], list[list[int]]]:
    """A chat that reads everything again at each turn: the answers, the tokens read in the last turn, the tokens given."""
    messages: list[dict[str, str]] = []
    given: list[list[int]] = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        ids = model.tokenizer.encode_chat(messages)
        settings = GenerationOptions(**{**vars(options), "stop_token_ids": model.info.eos_token_ids})
        with model.session() as session:
            tokens = [int(row[0]) for row in generate(session, ids[None], settings)]
        given.append(tokens)
        shown = tokens[:-1] if tokens[-1] in model.info.eos_token_ids else tokens
        messages.append({"role": "assistant", "content": model.tokenizer.decode(shown)})
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    return answers, [*ids.tolist(), *given[-1][:-1]], given


def drafter(model: Model, *, drafts: bool) -> SessionDrafter | None:
    """One that is always right."""
    return SessionDrafter(model.session(), num_tokens=4) if drafts else None


@pytest.mark.parametrize("drafts", [False, True])
@pytest.mark.parametrize("end", [(), (2, *range(5, 20))])
def test_a_session_reads_every_token_once(make_fake: MakeFake, tmp_path: Path, end: tuple[int, ...], drafts: bool) -> None:
    """With answers cut by their length (no end token at all) and with answers that end by themselves."""
    with load(make_fake(tmp_path / "other", eos=end)) as model, Spy(model) as session:
        conversation = Conversation(model, session, TEN, drafter=drafter(model, drafts=drafts))
        said: list[str] = []
        turns = ["How are you?", "Why?", "I see. And then", "ok"]
        for turn in turns:
            pieces: list[str] = []
            conversation.ask(turn, write=pieces.append)
            said.append("".join(pieces))
        answers, tokens, given = by_hand(model, turns, TEN)
        assert said == answers
        assert session.read == tokens
        odd = sum(any(token < 5 and token not in end for token in answer) for answer in given[:-1])  # special: no text has them
        assert odd < len(turns) - 1
        assert session.resets == 1 + odd  # and once before the first turn


def test_reset_forgets(model: Model) -> None:
    with Spy(model) as session:
        conversation = Conversation(model, session, TEN)
        for turn in ("one", "two"):
            conversation.ask(turn, write=quiet)
        conversation.reset()
        conversation.ask("three", write=quiet)
        assert session.read == by_hand(model, ["three"], TEN)[1]


@pytest.mark.parametrize("drafts", [False, True])
def test_a_stop_string_makes_the_next_turn_read_again(model: Model, drafts: bool) -> None:
    first = by_hand(model, ["one"], TEN)[0][0]
    with Spy(model) as session:
        conversation = Conversation(model, session, TEN, stop=[first[4:6]], drafter=drafter(model, drafts=drafts))
        summary = conversation.ask("one", write=quiet)
        assert summary.finish_reason == "stop_string"
        pieces: list[str] = []
        conversation.ask("two", write=pieces.append)
        rendered = model.tokenizer.decode(session.read, skip_special_tokens=False)
        assert f"<model>{first[: first.index(first[4:6])]}</s><user>two</s><model>" in rendered
        assert session.resets == 2


def test_a_template_that_rewrites_what_was_said(make_fake: MakeFake, tmp_path: Path) -> None:
    template = "{% for m in messages %}<user>{{ m.content | upper }}</s>{% endfor %}<model>"
    with load(make_fake(tmp_path / "upper", template=template)) as model, Spy(model) as session:
        conversation = Conversation(model, session, TEN)
        for turn in ("one", "two"):
            conversation.ask(turn, write=quiet)
        answers, tokens, _ = by_hand(model, ["one", "two"], TEN)
        assert session.read == tokens
        assert answers[0].upper() != answers[0]


@pytest.mark.parametrize("drafts", [False, True])
def test_an_interrupted_answer_stays_in_the_conversation(model: Model, drafts: bool) -> None:
    """Drafted tokens that nobody saw are no part of it."""
    with Spy(model) as session:
        conversation = Conversation(model, session, TEN, drafter=drafter(model, drafts=drafts))
        pieces: list[str] = []
        summary = conversation.ask("one", write=pieces.append, interrupted=lambda: len(pieces) == 3)
        assert (summary.finish_reason, summary.new_tokens, len(pieces)) == ("interrupted", 3, 3)
        conversation.ask("two", write=quiet)
        text = model.tokenizer.decode(session.read, skip_special_tokens=False)
        assert text.startswith(f"<s><user>one</s><model>{''.join(pieces)}</s><user>two</s><model>")


def test_a_refused_turn_changes_nothing(make_fake: MakeFake, tmp_path: Path) -> None:
    with load(make_fake(tmp_path / "short", windows=(8, 0), max_positions=60, eos=())) as model, Spy(model) as session:
        conversation = Conversation(model, session, TEN)
        conversation.ask("one", write=quiet)
        with pytest.raises(ContextExceeded):
            conversation.ask("x" * 60, write=quiet)
        conversation.ask("two", write=quiet)
        assert session.read == by_hand(model, ["one", "two"], TEN)[1]
        assert session.resets == 1


def test_an_error_in_mid_answer_makes_the_next_turn_read_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with Spy(model) as session:
        conversation = Conversation(model, session, TEN)
        conversation.ask("one", write=quiet)

        def fail(_: str) -> None:
            raise ContextExceeded("after a few tokens")

        with pytest.raises(ContextExceeded):
            conversation.ask("two", write=fail)
        conversation.ask("three", write=quiet)
        assert session.read == by_hand(model, ["one", "three"], TEN)[1]


def test_chat_reads_lines(alize: Alize, artifact: Path) -> None:
    with load(artifact) as model:
        (one, two), _, _ = by_hand(model, ["one", "two"], TEN)
        three = by_hand(model, ["three"], TEN)[0][0]
    turns = "one\n\n  \ntwo\n/reset\nthree\n/exit\nfour\n"
    ran = alize("chat", artifact, "--max-new-tokens", 10, stdin=turns)
    assert (ran.code, ran.out) == (0, f"{one}\n{two}\n{three}\n")
    assert ran.err.count("new in") == 3


def test_chat_without_an_end_of_line_and_json(alize: Alize, artifact: Path) -> None:
    ran = alize("chat", artifact, "--max-new-tokens", 3, "--json", stdin="one\ntwo")
    assert ran.code == 0
    assert [next(iter(line)) for line in ran.lines].count("end") == 2
    assert {key for line in ran.lines for key in line} == {"text", "end"}


def test_a_refused_turn_ends_a_script(alize: Alize, make_fake: MakeFake, tmp_path: Path) -> None:
    short = make_fake(tmp_path / "short", windows=(8, 0), max_positions=20)
    ran = alize("chat", short, stdin="x" * 30 + "\none\n")
    assert (ran.code, ran.out) == (8, "")


class Terminal:
    """`alize chat` at a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "alize", "chat", *words]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        self.seen = ""

    def wait_for(self, text: str, times: int = 1) -> None:
        until = time.monotonic() + 60
        while self.seen.count(text) < times:
            assert time.monotonic() < until, self.seen
            self.seen += os.read(self.ours, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


Start = Callable[..., Terminal]


@pytest.fixture
def terminal() -> Iterator[Start]:
    with contextlib.ExitStack() as opened:

        def start(*words: str | Path) -> Terminal:
            started = Terminal(*map(str, words))
            opened.callback(started.close)
            return started

        yield start


def test_ctrl_c_stops_the_answer_and_not_the_program(make_fake: MakeFake, tmp_path: Path, terminal: Start) -> None:
    talk = terminal(make_fake(tmp_path / "endless", eos=()), "--max-new-tokens", "100000000")
    for turn in (1, 2):
        talk.wait_for("> ", turn)
        before = len(talk.seen)
        talk.type("one\n")
        while len(talk.seen) < before + 100:
            talk.seen += os.read(talk.ours, 4096).decode(errors="replace")
        talk.process.send_signal(signal.SIGINT)
        talk.wait_for("(interrupted)", turn)
    talk.wait_for("> ", 3)
    talk.type("/exit\n")
    assert talk.process.wait(timeout=60) == 0


def test_ctrl_c_at_the_prompt_leaves(artifact: Path, terminal: Start) -> None:
    talk = terminal(artifact)
    talk.wait_for("> ")
    while talk.process.poll() is None:  # one that comes before the read begins waits for a key
        talk.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    talk.wait_for("alize: error: interrupted")
    assert talk.process.returncode == 130


def test_a_refused_turn_does_not_end_a_talk(make_fake: MakeFake, tmp_path: Path, terminal: Start) -> None:
    talk = terminal(make_fake(tmp_path / "short", windows=(8, 0), max_positions=30), "--max-new-tokens", "3")
    talk.wait_for("> ")
    talk.type("x" * 40 + "\n")
    talk.wait_for("(/reset starts over)")
    talk.wait_for("> ", 2)
    talk.type("one\n")
    talk.wait_for("new in")
    talk.wait_for("> ", 3)
    talk.type("\x04")
    assert talk.process.wait(timeout=60) == 0
