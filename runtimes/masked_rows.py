"""Rows of a graph with GroupQueryAttention, on whatever device: what a step gives it, and which rows it takes at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.runtimes.linear_rows import LinearRows

__all__ = ["MaskedRows"]


class MaskedRows(LinearRows):
    """LinearRows whose lengths the graph takes by an attention mask, see optimize/group_query_attention.py.

    The kernel refuses a batch with a past when S > 1: such a step runs row by row.
    """

    def _at_once(self, new: int, lengths: NDArray[np.int64]) -> bool:
        return len(lengths) == 1 or (new == 1 and bool(lengths.min() == 1))

    def _inputs(self, rows: slice, tokens: NDArray[np.int64], positions: NDArray[np.int64], keep: int) -> dict[str, NDArray[Any]]:
        """tokens [b,S] are appended to some rows, none of them padding."""
        new = tokens.shape[1]
        totals = self._filled[rows] + new
        return {
            "input_ids": np.ascontiguousarray(tokens),
            "position_ids": positions[:, None] + np.arange(new, dtype=np.int64),
            "attention_mask": (np.arange(int(totals.max())) < totals[:, None]).astype(np.int64),
            "num_logits_to_keep": np.array([keep], np.int64),
        } | ({"num_evicted": self._evicted[rows]} if self._mixed else {})
