"""What is given to Session.append, checked."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alize.artifact.manifest import ModelInfo
from alize.errors import ContextExceeded, SessionError, TokenOutOfRange

__all__ = ["checked_tokens"]


def checked_tokens(
    tokens: ArrayLike,
    lengths: ArrayLike | None,
    keep: int,
    *,
    positions: NDArray[np.int64],
    info: ModelInfo,
    bounded: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """tokens int64 [B,S], 0 behind a row's end, and lengths int64 [B], for rows at `positions` [B].

    bounded: whether the model's maximum position holds. Raises SessionError, ContextExceeded, TokenOutOfRange.
    """
    batch = len(positions)
    rows = _integers(tokens, "tokens")
    if rows.ndim != 2 or rows.shape[0] != batch:
        raise SessionError(f"tokens have shape {list(rows.shape)}, not [B,S] with B = {batch}, this session's batch")
    size = rows.shape[1]
    counts = np.full(batch, size) if lengths is None else _integers(lengths, "lengths")
    if counts.shape != (batch,):
        raise SessionError(f"lengths have shape {list(counts.shape)}, not [{batch}]: give one length a row")
    if size == 0 or counts.min() < 1:
        raise SessionError(f"row {int(counts.argmin())} is an empty prompt: append at least one token a row (BOS, say)")
    if counts.max() > size:
        raise SessionError(f"length {int(counts.max())} of row {int(counts.argmax())} is more than the {size} tokens given")
    if not 0 <= keep <= counts.min():
        raise SessionError(f"keep {keep} is not within 0..{int(counts.min())}, the tokens of the shortest row; 0 keeps all")
    if bounded:
        _check_context(counts, positions, info.max_positions)
    return _in_range(rows, counts, info.vocab_size), counts.astype(np.int64)


def _check_context(counts: NDArray[np.int64], positions: NDArray[np.int64], limit: int) -> None:
    end = positions + counts
    row = int(end.argmax())
    if end[row] > limit:
        raise ContextExceeded(
            f"prompt of {int(counts[row])} tokens at position {int(positions[row])} needs {int(end[row])} positions,"
            f" the model has {limit}: shorten the prompt or reset() the session"
        )


def _in_range(rows: NDArray[np.int64], counts: NDArray[np.int64], vocabulary: int) -> NDArray[np.int64]:
    real = np.arange(rows.shape[1]) < counts[:, None]
    wrong = np.argwhere(real & ((rows < 0) | (rows >= vocabulary)))
    if len(wrong):
        row, column = (int(index) for index in wrong[0])
        raise TokenOutOfRange(
            f"token {int(rows[row, column])} at index {column} of row {row} is outside 0..{vocabulary - 1}"
            f" (vocabulary of {vocabulary}): use this model's tokenizer"
        )
    return np.where(real, rows, 0).astype(np.int64)


def _integers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise SessionError(f"{name} have rows of unequal length: pad them on the right and give lengths") from error
    if array.size and array.dtype.kind not in "iu":
        raise SessionError(f"{name} have dtype {array.dtype}, not integers: give token ids")
    return array.astype(np.int64)
