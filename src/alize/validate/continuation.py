"""The greedy continuation: the artifact writes, then the reference reads what it wrote and says whether it would agree."""

from collections.abc import Callable
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference, WeightRule
from alize.progress import Progress
from alize.runtimes.registry import Engine
from alize.runtimes.session import Session, session_limits
from alize.validate.cases import Case
from alize.validate.drive import chosen_experts
from alize.validate.judge import Budget, judge_loss
from alize.validate.measure import NEAR_TIE, Figures, measure
from alize.validate.near_ties import ROUTER_NEAR_TIE

__all__ = ["check_continuation"]

_READ = "reference, what was continued"


def check_continuation(
    engine: Engine,
    info: ModelInfo,
    checkpoint: Checkpoint,
    prompt: NDArray[np.int64],
    count: int,
    *,
    rule: WeightRule,
    quantised: bool,
    tapped: Callable[[], Engine],
    budget: Budget,
    progress: Progress,
) -> tuple[Figures, list[str], dict[str, str]]:
    """Generates `count` tokens after prompt [S]; one reference pass over both judges every step.

    rule: the artifact's own weights.   quantised: they are integers: the engine rounds activations too then, and may prefer
    another token by more than a near-tie, so that the steps are held to the budget of the runtime loss.
    tapped: opens the same engine with `expert_taps`. It is asked only where a token differs: a router whose choice lies
    ROUTER_NEAR_TIE or less below the reference's own is not to blame, and the reference then follows it.
    The engine is closed, and what reads behind it is a stage of its own: neither is counted to the other's memory. Returns
    the figures of the steps, why they fail, and prompt and continuation as text (empty without a tokenizer).
    """
    tokens, steps = _write(engine, info, prompt, count)
    engine.close()  # so that its weights are not in memory beside the reference's
    progress.stage(_READ)
    positions = np.arange(len(prompt) - 1, len(tokens) - 1)
    reference = Reference(checkpoint, weights=rule)
    figures = measure(reference.run([tokens], positions=[positions]).logits[0], steps, positions)
    changed = np.flatnonzero(~figures.top1 & ~figures.near_tie)
    if len(changed) and info.experts:
        case = Case("greedy continuation", (len(prompt),), (1,) * count, chunk=session_limits(info, {}).chunk)
        progress.stage("follow the router's near-ties")
        with closing(tapped()) as again:
            chosen = chosen_experts(again, info, case, tokens)
        del again
        progress.stage(_READ)
        followed = reference.run([tokens], positions=[positions], follow=chosen)
        if (followed.routing[0].lag <= ROUTER_NEAR_TIE).all():
            figures = measure(followed.logits[0], steps, positions)
            changed = np.flatnonzero(~figures.top1 & ~figures.near_tie)
    reasons = []
    if quantised:
        reasons = judge_loss(figures, mean=budget.runtime_kl, worst=budget.runtime_kl_max)
    elif len(changed):
        first = int(positions[changed[0]])
        reasons.append(
            f"{len(changed)} of {count} tokens are not what the reference would write (beyond near-ties of {NEAR_TIE} nats), "
            f"first at position {first}"
        )
    return figures, reasons, _texts(checkpoint, prompt, tokens[len(prompt) :])


def _write(
    engine: Engine, info: ModelInfo, prompt: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The prompt and what follows it, int64 [S+count], and the logits [count,V] that each was chosen by. The session ends here:
    it holds on to the engine's memory."""
    limits, tokens, steps = session_limits(info, {}), prompt, []
    with Session(engine.runner(1), info, batch=1, chunk=limits.chunk, slack=limits.slack) as session:
        logits = session.append(prompt[None])[0]
        for _ in range(count):
            steps.append(logits[0])
            tokens = np.append(tokens, logits[0].argmax())
            logits = session.append(tokens[None, -1:])[0]
    return tokens, np.stack(steps)


def _texts(checkpoint: Checkpoint, prompt: NDArray[np.int64], written: NDArray[np.int64]) -> dict[str, str]:
    path = checkpoint.folder / "tokenizer.json"
    if not path.is_file():
        return {}
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return {"prompt": tokenizer.decode(prompt.tolist()), "continuation": tokenizer.decode(written.tolist())}
