"""Feeds a case to an engine and collects its logits at the positions that the reference kept."""

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.runtimes.registry import Engine
from alize.runtimes.session import Session
from alize.validate.cases import Case

__all__ = ["run_case"]


def run_case(
    engine: Engine, info: ModelInfo, case: Case, tokens: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """tokens int64 [N]; kept int64 [n], ascending. Returns the positions int64 [m] and logits float32 [m,V] of every row's
    kept positions, step after step."""
    rows = len(case.first)
    widest = max(case.first)
    with Session(engine.runner(rows), info, batch=rows, chunk=case.chunk, slack=case.chunk) as session:
        prompt = np.zeros((rows, widest), np.int64)
        for b, size in enumerate(case.first):
            prompt[b, :size] = tokens[:size]
        found = [_pick(session.append(prompt, lengths=np.array(case.first), keep=0), case.first, np.zeros(rows, int), kept)]
        done = np.array(case.first)
        for size in case.steps:
            step = np.stack([tokens[start : start + size] for start in done.tolist()])
            found.append(_pick(session.append(step, keep=0), (size,) * rows, done, kept))
            done += size
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


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
