"""Answers as streamed text, and conversations in which each turn appends only what is new."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alize.errors import AlizeError
from alize.runtimes.generate import GenerationOptions, generate
from alize.runtimes.model import Model
from alize.runtimes.session import Session
from alize.runtimes.speculation import Drafter

__all__ = ["Answer", "Conversation", "Summary", "answer"]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One answer. `prompt_seconds` runs to the first new token, `seconds` from there to the last.

    finish_reason: "stop" (an end token), "stop_string", "length", "context" (no position left) or "interrupted".
    drafted_tokens, accepted_tokens: of a drafter, None without one.
    """

    finish_reason: str
    prompt_tokens: int
    new_tokens: int
    prompt_seconds: float
    seconds: float
    drafted_tokens: int | None = None
    accepted_tokens: int | None = None

    def line(self) -> str:
        """The summary for people."""
        rate = f", {(self.new_tokens - 1) / self.seconds:.1f} tokens/s" if self.new_tokens > 1 and self.seconds > 0 else ""
        prompt = f"{self.prompt_tokens} prompt tokens in {self.prompt_seconds:.2f} s"
        drafts = "" if self.drafted_tokens is None else f", {self.accepted_tokens} of {self.drafted_tokens} drafted ones accepted"
        return f"{prompt}, {self.new_tokens} new in {self.seconds:.2f} s{rate}{drafts} ({self.finish_reason})"


@dataclass(frozen=True)
class Answer:
    """text: what was shown.   tokens: what was generated, without an end token.   unread: those not in the session yet."""

    text: str
    tokens: list[int]
    unread: list[int]
    summary: Summary


class Conversation:
    """A chat over one session: each turn appends only what the session has not read yet.

    The template renders the whole conversation at every turn. Where that text begins with what the session's tokens spell,
    the rest alone is encoded and appended. Where a template rewrites what was said, or the answer's text is not what its
    tokens spell (a stop string cut it, it holds special tokens), the session is reset and reads the conversation again.
    """

    def __init__(
        self,
        model: Model,
        session: Session,
        options: GenerationOptions,
        *,
        stop: Sequence[str] = (),
        drafter: Drafter | None = None,
    ) -> None:
        self._model, self._session, self._options, self._stop = model, session, options, tuple(stop)
        self._drafter = drafter
        self._messages: list[dict[str, str]] = []
        self._spelt = ""  # the text of the session's tokens and of the unread one
        self._unread: list[int] = []

    def ask(self, text: str, *, write: Callable[[str], None], interrupted: Callable[[], bool] = lambda: False) -> Summary:
        """One turn. An error leaves the conversation as it was before."""
        messages = [*self._messages, {"role": "user", "content": text}]
        rendered = self._model.tokenizer.render_chat(messages)
        tokens = self._to_append(rendered)
        spelt, self._spelt = self._spelt, ""  # unless the turn ends well, the session reads it all again
        before = self._session.position
        try:
            done = answer(
                self._model,
                self._session,
                tokens,
                self._options,
                stop=self._stop,
                drafter=self._drafter,
                write=write,
                interrupted=interrupted,
            )
        except AlizeError:
            self._spelt = spelt if before and self._session.position == before else ""
            raise
        self._messages = [*messages, {"role": "assistant", "content": done.text}]
        as_shown = self._model.tokenizer.decode(done.tokens, skip_special_tokens=False) == done.text
        self._spelt = rendered + done.text if as_shown else ""
        self._unread = done.unread
        return done.summary

    def reset(self) -> None:
        """Forgets everything that was said."""
        self._messages = []
        self._spelt = ""

    def _to_append(self, rendered: str) -> NDArray[np.int64]:
        encode = self._model.tokenizer.encode
        if self._spelt and rendered.startswith(self._spelt):
            rest = encode(rendered[len(self._spelt) :], special_tokens=False)
            return np.concatenate([np.array(self._unread, np.int64), rest])
        self._session.reset()
        if self._drafter is not None:
            self._drafter.reset()
        return encode(rendered, special_tokens=False)


def answer(
    model: Model,
    session: Session,
    tokens: NDArray[np.int64],
    options: GenerationOptions,
    *,
    stop: Sequence[str] = (),
    drafter: Drafter | None = None,
    write: Callable[[str], None],
    interrupted: Callable[[], bool] = lambda: False,
) -> Answer:
    """Appends tokens[S] to the session and passes the text of what follows to `write`, piece by piece.

    The model's own end tokens end it too. Raises what Session.append raises.
    """
    options = replace(options, stop_token_ids=(*options.stop_token_ids, *model.info.eos_token_ids))
    stream = model.tokenizer.stream(stop=stop)
    generation = generate(session, tokens[None], options, drafter=drafter)
    pieces: list[str] = []

    def say(piece: str) -> None:
        if piece:
            pieces.append(piece)
            write(piece)

    began = first = time.perf_counter()
    new: list[int] = []
    reason = "length"
    for row in generation:
        new.append(int(row[0]))
        first = time.perf_counter() if len(new) == 1 else first
        if new[-1] in options.stop_token_ids:
            break
        say(stream.push(new[-1]))
        if stream.stopped is not None or interrupted():
            reason = "stop_string" if stream.stopped is not None else "interrupted"
            break
    generation.close()
    if reason != "stop_string":
        say(stream.flush())
        reason = "stop_string" if stream.stopped is not None else generation.finish_reasons[0] or reason
    seconds = time.perf_counter() - first
    summary = Summary(
        finish_reason=reason,
        prompt_tokens=len(tokens),
        new_tokens=len(new),
        prompt_seconds=first - began,
        seconds=seconds,
        drafted_tokens=None if drafter is None else generation.drafted,
        accepted_tokens=None if drafter is None else generation.accepted,
    )
    shown = [token for token in new if token not in options.stop_token_ids]
    unread = new[-1:] if new[-1:] == shown[-1:] else []
    return Answer("".join(pieces), shown, unread, summary)
