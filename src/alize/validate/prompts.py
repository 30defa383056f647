"""The tokens that a validation reads: a passage of English, then random tokens of the vocabulary for as long as it takes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo

__all__ = ["validation_tokens"]

_PASSAGE = Path(__file__).with_name("passage.txt")
_SEED = 20240607


def validation_tokens(folder: Path, info: ModelInfo, length: int) -> NDArray[np.int64]:
    """int64 [length]. The passage is read by FOLDER's tokenizer.json; without one all tokens are random (seeded)."""
    rng = np.random.default_rng(_SEED)
    random = rng.integers(0, info.vocab_size, length)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return random.astype(np.int64)
    import tokenizers

    ids = tokenizers.Tokenizer.from_file(str(path)).encode(_PASSAGE.read_text(encoding="utf-8")).ids
    usable = [token for token in ids if token < info.vocab_size][:length]
    return np.concatenate([np.array(usable, np.int64), random[len(usable) :]]).astype(np.int64)
