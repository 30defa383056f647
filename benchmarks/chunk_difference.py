"""How far logits of tokens appended together are from those of tokens appended one by one: what a draft's check may differ by.

    python -m benchmarks.chunk_difference ARTIFACT [--configuration NAME]

Over 96 tokens of English behind 300: the greatest difference of a logit for chunks of some sizes, and at how many of the 96 the
greatest logit is another one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alize.runtimes import Model, load

PAST, NEW = 300, 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--configuration")
    options = parser.parse_args()
    with load(options.artifact, configuration=options.configuration) as model:
        text = Path("docs/sampling.md").read_text(encoding="utf-8")
        tokens = model.tokenizer.encode(text)[: PAST + NEW]
        alone = _logits(model, tokens, 1)
        found = {}
        for size in (2, 4, 8, 16, 32):
            together = _logits(model, tokens, size)
            found[size] = {
                "greatest_difference": float(np.abs(together - alone).max()),
                "other_tokens": int((together.argmax(1) != alone.argmax(1)).sum()),
            }
        print(json.dumps({"configuration": dict(model.configuration.options), "chunks": found}, indent=2))


def _logits(model: Model, tokens: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """float32 [NEW,V]"""
    with model.session() as session:
        session.append(tokens[None, :PAST])
        chunks = [session.append(tokens[None, at : at + size], keep=size)[0] for at in range(PAST, PAST + NEW, size)]
    return np.concatenate(chunks)


if __name__ == "__main__":
    main()
