"""A smaller model as drafter: it says what it would draw, token by token, and the large one checks that in one step.

Leviathan, Kalman, Matias, *Fast inference from transformers via speculative decoding*, 2023, with another rule of acceptance: the
small model draws with the random number of the position, with which the large one draws too, and is right where both draw the
same token. Given the same number, like distributions draw alike.
"""

from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from alize.errors import UsageError
from alize.runtimes.model import Model
from alize.runtimes.sampling import SamplingOptions, sample
from alize.runtimes.session import Session
from alize.runtimes.text import Tokenizer

__all__ = ["AssistantModel", "SessionDrafter", "check_tokenizers"]


class SessionDrafter:
    """A `Drafter` that asks another session, of one row and nobody else's. Raises UsageError.

    num_tokens: of a draft, at most. A draft is shorter where the small model's window is about to forget (what has been
    forgotten could not be rewound), and there is none behind the last position that the small model has.
    """

    def __init__(self, session: Session, *, num_tokens: int = 5) -> None:
        if num_tokens < 1:
            raise UsageError(f"num_tokens {num_tokens} must be 1 or more: leave the drafter out to generate without drafts")
        if session.batch != 1:
            raise UsageError(f"a drafter's session has one row, this one has {session.batch}: use model.session()")
        self._session, self._num_tokens = session, num_tokens
        self._unread: list[int] = []  # tokens that the session is yet to read
        self._guessed: list[int] = []  # tokens that it has read beyond what it was told

    def append(self, tokens: NDArray[np.int64]) -> None:
        """See Drafter. What was guessed right has been read."""
        for token in tokens.tolist():
            if self._guessed and self._guessed[0] == token:
                self._guessed.pop(0)
            else:
                self._forget_guesses()
                self._unread.append(token)

    def rewind(self, n: int) -> None:
        """See Drafter."""
        self._forget_guesses()
        read = max(0, n - len(self._unread))
        del self._unread[len(self._unread) - (n - read) :]
        self._session.rewind(read)

    def reset(self) -> None:
        """See Drafter."""
        self._unread, self._guessed = [], []
        self._session.reset()

    def draft(self, token: int, *, limit: int, position: int, options: SamplingOptions) -> NDArray[np.int64]:
        """See Drafter."""
        self._forget_guesses()
        read = [*self._unread, token]
        if not self._readable(read):
            return np.zeros(0, np.int64)
        logits = self._session.append([read])[:, -1]
        self._unread, self._guessed = [], [token]
        draft: list[int] = []
        end = position + min(limit, self._num_tokens)
        for place in range(position, end):
            draft.append(int(sample(logits, np.array([place]), options)[0]))
            if 0 in (self._session.headroom, self._session.room) or place + 1 == end:
                break
            logits = self._session.append([draft[-1:]])[:, -1]
            self._guessed.append(draft[-1])
        return np.array(draft, np.int64)

    def _readable(self, tokens: list[int]) -> bool:
        room = self._session.room
        return (room is None or room >= len(tokens)) and max(tokens) < self._session.vocab_size

    def _forget_guesses(self) -> None:
        if self._guessed:
            self._session.rewind(len(self._guessed))
            self._guessed = []


class AssistantModel(SessionDrafter):
    """A smaller model with the same tokenizer as the large one, in a session of its own. Close it, or use it in `with`.

    Raises UsageError where the two tokenizers differ, ArtifactError where a model has none.
    """

    def __init__(self, assistant: Model, model: Model, *, num_tokens: int = 5) -> None:
        check_tokenizers(assistant.tokenizer, model.tokenizer)
        super().__init__(assistant.session(), num_tokens=num_tokens)

    def close(self) -> None:
        """Closes its session, not the model."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_tokenizers(assistant: Tokenizer, model: Tokenizer) -> None:
    """The same tokens under the same numbers: else nearly every draft would be wrong, and nothing would say why.

    Raises UsageError.
    """
    theirs, ours = assistant.vocabulary, model.vocabulary
    if theirs == ours:
        return
    differing = sorted(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token))
    first = min(differing, key=lambda token: min(theirs.get(token, len(theirs)), ours.get(token, len(ours))))
    raise UsageError(
        f"the assistant's tokenizer is another one: {len(differing)} of {len(ours)} tokens differ, {first!r} is "
        f"{theirs.get(first, 'unknown')} there and {ours.get(first, 'unknown')} in the model: use an assistant of the same family"
    )
