"""Greedy text of one checkpoint by PyTorch and by its artifacts: the same tokens, or a near-tie that is shown.

    python ci/same_text.py CHECKPOINT ARTIFACT...

Prompts: a question in the chat template, and 450 tokens of the licence, so that prompt and answer pass twice a window of 256.
Exit code 1 where an artifact writes another token although PyTorch preferred its own by NEAR_TIE nats or more.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alize.models import session as torch_backend
from alize.runtimes import Session, Tokenizer, load
from alize.runtimes.session import session_limits
from alize.validate.measure import NEAR_TIE

NEW_TOKENS = 128
QUESTION = "What is a trade wind, and why did sailors like it?"


def greedy(session: Session, prompt: NDArray[np.int64]) -> tuple[list[int], list[float]]:
    """NEW_TOKENS tokens after prompt [S], and by how many nats each was preferred to the second."""
    tokens: list[int] = []
    margins: list[float] = []
    logits = session.append(prompt[None])[0, 0]
    while len(tokens) < NEW_TOKENS:
        second, first = np.sort(logits)[-2:]
        tokens.append(int(logits.argmax()))
        margins.append(float(first - second))
        logits = session.append([tokens[-1:]])[0, 0]
    return tokens, margins


def compare(expected: Sequence[int], margins: Sequence[float], found: Sequence[int], name: str) -> bool:
    """Prints one line; False where they differ by more than a near-tie."""
    where = next((index for index, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b), None)
    if where is None:
        print(f"{name}: the same {len(expected)} tokens as PyTorch")
        return True
    near = margins[where] < NEAR_TIE
    print(
        f"{name}: token {where} is another, where PyTorch preferred its own by {margins[where]:.4f} nats{', a near-tie' * near}"
    )
    return near


def main(checkpoint: Path, artifacts: Sequence[Path]) -> int:
    tokenizer = Tokenizer(checkpoint)
    licence = tokenizer.encode((Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8"))
    prompts = [tokenizer.encode_chat([{"role": "user", "content": QUESTION}]), licence[:450]]
    engine = torch_backend.open(checkpoint)
    limits = session_limits(engine.info, {})
    same = True
    with ExitStack() as stack:
        models = [stack.enter_context(load(folder)) for folder in artifacts]
        for prompt in prompts:
            with Session(engine.runner(1), engine.info, batch=1, chunk=limits.chunk, slack=limits.slack) as reference:
                expected, margins = greedy(reference, prompt)
            print(f"{len(prompt)} tokens, then: {tokenizer.decode(expected)[:100]!r} ...")
            for model in models:
                with model.session() as session:
                    same &= compare(expected, margins, greedy(session, prompt)[0], model.manifest.target.backend)
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]]))
