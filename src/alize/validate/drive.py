"""Feeds a case to an engine and collects its logits at the positions that the reference kept, and the experts it chose."""

from collections.abc import Iterator
from typing import cast

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.runtimes.registry import Engine
from alize.runtimes.runner import Runner
from alize.runtimes.session import Session
from alize.runtimes.taps import TappedRunner
from alize.validate.cases import Case

__all__ = ["chosen_experts", "expert_taps", "feed", "places", "run_case"]


def run_case(
    engine: Engine, info: ModelInfo, case: Case, tokens: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """tokens int64 [N]; kept int64 [n], ascending. Returns the positions int64 [m] and logits float32 [m,V] of every row's
    kept positions, step after step."""
    rows = len(case.first)
    with _session(engine, engine.runner(rows), info, case) as session:
        found = [_pick(logits, sizes, starts, kept) for logits, sizes, starts in feed(session, case, tokens)]
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


def places(case: Case, kept: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row of the batch and position in it, int64 [m] each, of the logits that `run_case` returns."""
    rows, positions = [], []
    starts = np.zeros(len(case.first), np.int64)
    for sizes in (case.first, *((size,) * len(case.first) for size in case.steps)):
        for b, (size, start) in enumerate(zip(sizes, starts.tolist(), strict=True)):
            positions.append(kept[(kept >= start) & (kept < start + size)])
            rows.append(np.full(len(positions[-1]), b))
        starts = starts + np.array(sizes)
    return np.concatenate(rows), np.concatenate(positions)


def expert_taps(info: ModelInfo) -> tuple[str, ...]:
    """The tensors of an artifact that hold the chosen experts [B*S,top_k], layer by layer."""
    return tuple(f"layers.{layer}.experts" for layer in range(info.layers))


def chosen_experts(engine: Engine, info: ModelInfo, case: Case, tokens: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The experts [L,S,top_k] that an engine opened with `expert_taps` chooses in each row of the case."""
    rows = len(case.first)
    runner = cast(TappedRunner, engine.runner(rows))
    with _session(engine, runner, info, case) as session:
        for _ in feed(session, case, tokens):
            pass
    return [np.stack([runner.taps.row(b, name) for name in expert_taps(info)]).astype(np.int64) for b in range(rows)]


def _session(engine: Engine, runner: Runner, info: ModelInfo, case: Case) -> Session:
    """Cut as the case asks for, or as an engine of static shapes can take it."""
    chunk = min(case.chunk, getattr(engine, "chunk", case.chunk))
    return Session(runner, info, batch=len(case.first), chunk=chunk, slack=chunk)


def feed(
    session: Session, case: Case, tokens: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.float32], tuple[int, ...], NDArray[np.int64]]]:
    """Step by step: logits [B,S,V], how many of them each row has, and the position of each row's first."""
    rows = len(case.first)
    prompt = np.zeros((rows, max(case.first)), np.int64)
    for b, size in enumerate(case.first):
        prompt[b, :size] = tokens[:size]
    yield session.append(prompt, lengths=np.array(case.first), keep=0), case.first, np.zeros(rows, np.int64)
    done = np.array(case.first)
    for size in case.steps:
        step = np.stack([tokens[start : start + size] for start in done.tolist()])
        yield session.append(step, keep=0), (size,) * rows, done
        done = done + size


def _pick(
    logits: NDArray[np.float32], sizes: tuple[int, ...], starts: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of logits [B,S,V], row b's first sizes[b] at positions starts[b]...: those that the reference kept."""
    positions, picked = [], []
    for b, (size, start) in enumerate(zip(sizes, starts.tolist(), strict=True)):
        wanted = kept[(kept >= start) & (kept < start + size)]
        positions.append(wanted)
        picked.append(logits[b, wanted - start])
    return np.concatenate(positions), np.concatenate(picked)
