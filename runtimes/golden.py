"""The golden replay: does this device still say what the reference said? Needs numpy and nothing of PyTorch.

golden.safetensors holds, for each prompt i:
    prompt.{i}       int64[S]      the tokens
    positions.{i}    int64[n]      ascending indices into the prompt
    log_probs.{i}    float32[n,V]  the reference's log-probabilities of the token after each of these
and in its header's metadata `budget`, a JSON object: kl (nats), max_log_prob_error, and optionally near_tie and top1.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from alize.errors import ArtifactError
from alize.runtimes.session import Session

__all__ = [
    "DECODED",
    "GOLDEN",
    "Budget",
    "Case",
    "Figures",
    "Verdict",
    "compare",
    "judge",
    "measure",
    "read_golden",
    "write_golden",
]

GOLDEN = "golden.safetensors"
DECODED = 8
"""Tokens at the end of each prompt that are appended one by one, so that the engine's decoding is replayed as well."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits on the worst position. near_tie: the greatest gap (nats) at which another top-1 is no disagreement, by default
    twice max_log_prob_error (what errors within it can turn round); top1: the least share of positions that agree."""

    kl: float
    max_log_prob_error: float
    near_tie: float | None = None
    top1: float = 1.0


@dataclass(frozen=True)
class Case:
    """One prompt with the reference's log-probabilities: see above."""

    prompt: NDArray[np.int64]
    positions: NDArray[np.int64]
    log_probs: NDArray[np.float32]


@dataclass(frozen=True)
class Figures:
    """Per position of one prompt, float64[n]: KL(reference || device) in nats; the greatest |log-probability error| of any
    token; and gap: by how much the reference prefers its own top-1 to the device's (0 where they agree)."""

    kl: NDArray[np.float64]
    error: NDArray[np.float64]
    gap: NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """What `judge` found. failures: one sentence each, with value and limit; empty when passed."""

    passed: bool
    figures: dict[str, float]
    failures: tuple[str, ...]


def write_golden(path: Path, cases: Sequence[Case], budget: Budget) -> None:
    """Write golden.safetensors."""
    tensors: dict[str, NDArray[np.int64] | NDArray[np.float32]] = {}
    for index, case in enumerate(cases):
        tensors[f"prompt.{index}"] = np.ascontiguousarray(case.prompt, np.int64)
        tensors[f"positions.{index}"] = np.ascontiguousarray(case.positions, np.int64)
        tensors[f"log_probs.{index}"] = np.ascontiguousarray(case.log_probs, np.float32)
    limits = {name: value for name, value in vars(budget).items() if value is not None}
    content = safetensors.numpy.save(tensors, metadata={"budget": json.dumps(limits, sort_keys=True)})
    path.write_bytes(content)  # save_file would leave it readable for its owner only


def read_golden(path: Path) -> tuple[Budget, Iterator[Case]]:
    """The budget, and the cases read one by one. Raises ArtifactError."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return _budget(path, file.metadata() or {}), _cases(path, sorted(file.keys()))
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): rebuild the artifact") from error


def measure(session: Session, cases: Iterator[Case]) -> list[Figures]:
    """Replay every prompt through a session of batch 1 and compare. The session is reset before each."""
    return [compare(case.log_probs, _replay(session, case)) for case in cases]


def judge(figures: Sequence[Figures], budget: Budget) -> Verdict:
    """Figures against a budget; pure. Anything that is not a number fails."""
    kl, error, gap = (np.concatenate([getattr(one, name) for one in figures] or [_NONE]) for name in ("kl", "error", "gap"))
    near_tie = 2 * budget.max_log_prob_error if budget.near_tie is None else budget.near_tie
    flips = int(np.count_nonzero(~(gap <= near_tie)))
    found = {
        "positions": float(len(kl)),
        "kl": float(kl.max(initial=0)),
        "kl_mean": float(kl.mean()) if len(kl) else 0.0,
        "max_log_prob_error": float(error.max(initial=0)),
        "top1": 1 - flips / len(kl) if len(kl) else 0.0,
        "near_ties": float(np.count_nonzero((gap > 0) & (gap <= near_tie))),
    }
    limits = {"kl": budget.kl, "max_log_prob_error": budget.max_log_prob_error}
    failures = [f"{name} {found[name]:.3g} is over {limit:.3g}" for name, limit in limits.items() if not found[name] <= limit]
    if not found["top1"] >= budget.top1:
        failures.append(f"top-1 agreement {found['top1']:.4f} is under {budget.top1:.4f}")
    if not len(kl):
        failures.append("nothing was compared")
    finite = {name: value for name, value in found.items() if math.isfinite(value)}
    return Verdict(not failures, finite, tuple(failures))


_NONE = np.zeros(0)
_LIMITS = {"kl", "max_log_prob_error", "near_tie", "top1"}
_PARTS = ("prompt", "positions", "log_probs")


def _budget(path: Path, metadata: dict[str, str]) -> Budget:
    try:
        limits = json.loads(metadata["budget"])
        usable = {"kl", "max_log_prob_error"} <= limits.keys() <= _LIMITS
        return Budget(**{name: float(value) for name, value in limits.items() if usable})
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} has no usable budget in its metadata ({metadata}): rebuild the artifact") from error


def _cases(path: Path, names: list[str]) -> Iterator[Case]:
    count = len(names) // len(_PARTS)
    if not count or set(names) != {f"{part}.{index}" for part in _PARTS for index in range(count)}:
        raise ArtifactError(f"{path} does not hold prompt, positions and log_probs of each case: rebuild the artifact")

    def read() -> Iterator[Case]:
        with safetensors.safe_open(path, framework="np") as file:
            for index in range(count):
                yield Case(*(file.get_tensor(f"{part}.{index}") for part in _PARTS))

    return read()


def _replay(session: Session, case: Case) -> NDArray[np.float32]:
    """Logits[n,V] at case.positions; of the rest no more than a chunk is ever held."""
    session.reset()
    size = len(case.prompt)
    prefill = size - min(DECODED, size // 2)
    starts = [*range(0, prefill, session.limits.chunk), *range(prefill, size)]
    kept = []
    for start, stop in zip(starts, [*starts[1:], size], strict=True):
        wanted = case.positions[(case.positions >= start) & (case.positions < stop)]
        keep = stop - int(wanted.min(initial=stop - 1))
        logits = session.append(case.prompt[None, start:stop], keep=keep)[0]
        kept.append(logits[wanted - (stop - keep)])
    return np.concatenate(kept)


def compare(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> Figures:
    """log-probabilities (or logits) [n,V] of the reference, logits [n,V] of the device."""
    rows = np.arange(len(reference))
    with np.errstate(invalid="ignore"):  # what is no number stays so, and fails
        expected, found = _log_softmax(reference), _log_softmax(logits)
        kl = (np.exp(expected) * (expected - found)).sum(axis=-1)
        error = np.abs(expected - found).max(axis=-1)
    gap = expected.max(axis=-1) - expected[rows, found.argmax(axis=-1)]
    return Figures(np.where(kl < 0, 0.0, kl), error, gap)  # KL is not negative: below 0 is rounding


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
