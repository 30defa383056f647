"""The text that a calibration reads: a file of the user's, or the passages that come with alize."""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alize.errors import UsageError
from alize.models.checkpoint import Checkpoint
from alize.models.registry import family_for
from alize.optimize.quantisation import Quantisation

__all__ = ["BUILT_IN", "LEAST_TOKENS", "SEQUENCE", "SEQUENCES", "CalibrationText"]

BUILT_IN = "built-in"
SEQUENCE = 512  # tokens that are read together
SEQUENCES = 16  # of them at most: of a longer text, spread evenly over it
LEAST_TOKENS = 256

_PASSAGES = Path(__file__).with_name("calibration.txt")


@dataclass(frozen=True)
class CalibrationText:
    """name: "built-in", or of the file, without its folder.   sha256: of its bytes, in hex."""

    name: str
    text: str
    sha256: str

    @staticmethod
    def open(calibrate: str) -> "CalibrationText":
        """calibrate: the path of a file of plain text, in UTF-8, or "built-in". Raises UsageError."""
        path = _PASSAGES if calibrate == BUILT_IN else Path(calibrate)
        try:
            data = path.read_bytes()
            text = data.decode("utf-8")
        except OSError as error:
            raise UsageError(f"--calibrate {calibrate} cannot be read: {error.strerror}; give a file of plain text") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"--calibrate {calibrate} is not UTF-8 at byte {error.start}; give a file of plain text") from error
        name = BUILT_IN if calibrate == BUILT_IN else path.name
        return CalibrationText(name, text, hashlib.sha256(data).hexdigest())

    @staticmethod
    def chosen(calibrate: str, weights: str, checkpoint: Checkpoint) -> "CalibrationText":
        """For a build of `weights`. Raises UsageError where those are no integers, and for a text that cannot be used."""
        if Quantisation.parse(weights) is None:
            raise UsageError(f"--calibrate is for --weights int8, int4 and mixed, not for {weights}")
        text = CalibrationText.open(calibrate)
        text.sequences(checkpoint)
        return text

    def __str__(self) -> str:
        """For the manifest."""
        return f"{self.name}, sha256 {self.sha256}"

    @property
    def option(self) -> str:
        """As an option of the command line; a file without its folder, which is no part of an artifact."""
        return "--calibrate" if self.name == BUILT_IN else f"--calibrate {shlex.quote(self.name)}"

    def sequences(self, checkpoint: Checkpoint, *, option: str = "--calibrate") -> list[NDArray[np.int64]]:
        """int64 [SEQUENCE] each, the only one of a short text shorter, by the checkpoint's tokenizer.json.

        option: what asked for it. Raises UsageError: no tokenizer, or fewer tokens than LEAST_TOKENS.
        """
        import tokenizers

        path = checkpoint.folder / "tokenizer.json"
        if not path.is_file():
            raise UsageError(f"{option} needs the checkpoint's tokenizer: {path} is missing; add it or leave {option} out")
        size = family_for(checkpoint.config).config.from_dict(checkpoint.config).vocab_size
        ids = tokenizers.Tokenizer.from_file(str(path)).encode(self.text).ids
        tokens = np.array([token for token in ids if token < size], np.int64)
        if len(tokens) < LEAST_TOKENS:
            raise UsageError(
                f"{option}: {self.name} has {len(tokens)} tokens, {LEAST_TOKENS} are needed at least; give a longer text"
            )
        count = len(tokens) // SEQUENCE
        if not count:
            return [tokens]
        chosen = np.linspace(0, count - 1, min(count, SEQUENCES)).astype(np.int64)
        return [tokens[start : start + SEQUENCE] for start in chosen * SEQUENCE]
