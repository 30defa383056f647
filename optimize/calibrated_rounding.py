"""Rounding one matrix to integers for the inputs that it will meet (GPTQ: Frantar et al. 2022, arXiv:2210.17323).

Its rows are rounded input by input, and what rounding one input's weights costs is made up for by the weights of the inputs still
to come, as far as inputs of a calibration text go together. With G = X^T X of the inputs X [n,in] this is Gaussian elimination:
for G = U D U^T, U upper triangular with ones on the diagonal, weight k is rounded after adding the errors of the weights before
it, weighed by column k of U (Chee et al. 2023, arXiv:2307.13304, show that both are the same rounding).

Inputs go in order of their strength, the strongest first: they get the plain nearest integers, the weakest make up for the rest.
Scales are found before, group by group, with each error counting by the strength of its input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alize.errors import UnsupportedModel
from alize.optimize.quantisation import Form
from alize.optimize.round_to_integers import Integers, scales_of

__all__ = ["Inputs", "calibrated"]

_DAMPING = 0.1
"""Of the mean strength, added to each input's: what the text never shows must not count for nothing."""
_ATTEMPTS = 8  # each with as much damping again, where rounding made G lose its positive eigenvalues
_BLOCK = 128  # inputs whose errors are handed on one by one; beyond them, all at once
_ROWS = 1024  # rows together: what is computed on the way stays small


@dataclass(frozen=True)
class Inputs:
    """What is known of a matrix's inputs. strength: float32 [in], the damped diagonal of G.   order: int64 [in], strongest
    first.   factor: U of G in that order, float32 [in,in]."""

    strength: Tensor
    order: Tensor
    factor: Tensor

    @staticmethod
    def of(gram: Tensor) -> "Inputs":
        """gram: G, float32 [in,in]; it is used up. Two matrices of its size are in memory at the peak."""
        diagonal = gram.diagonal()
        mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
        diagonal += _DAMPING * mean
        strength = diagonal.clone()
        order = torch.argsort(strength, descending=True, stable=True)
        backwards = order.flip(0)
        gram = gram[backwards]
        gram = gram[:, backwards]
        for _ in range(_ATTEMPTS):
            lower, failed = torch.linalg.cholesky_ex(gram)  # of G from last to first: turned round it is upper
            if not failed:
                break
            gram.diagonal().add_(_DAMPING * mean)
        else:
            raise UnsupportedModel("the activations of the calibration text have no finite products: build without --calibrate")
        del gram
        factor = lower.flip(0, 1)
        del lower
        factor /= factor.diagonal().clone()
        return Inputs(strength, order, factor)


def calibrated(name: str, rows: Tensor, form: Form, inputs: Inputs) -> Integers:
    """Rounds the rows [out,in] of the weight `name` so that rows @ X^T changes least; each on its own.

    Raises CorruptCheckpoint (NaN or infinite values), UnsupportedModel (a scale beyond float16).
    """
    scales, zeros = scales_of(name, rows, form, importance=inputs.strength)
    values = torch.empty(rows.shape, dtype=torch.int8 if form.symmetric else torch.uint8)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        values[part] = _steps(rows[part].float(), scales[part].float(), zeros[part].float(), form, inputs).to(values.dtype)
    return Integers(values, scales, None if form.symmetric else zeros)


def _steps(rows: Tensor, scales: Tensor, zeros: Tensor, form: Form, inputs: Inputs) -> Tensor:
    """The integers of the rows [out,in], as floats. scales and zeros: [out,G]."""
    low, high = form.limits
    size = rows.shape[1]
    group = inputs.order // form.group
    ordered, scale, zero = (
        values.t()[chosen].contiguous() for values, chosen in ((rows, inputs.order), (scales, group), (zeros, group))
    )
    errors, found = torch.zeros_like(ordered), torch.empty_like(ordered)  # [in,out]: an input's weights lie together
    for start in range(0, size, _BLOCK):
        block = slice(start, start + _BLOCK)
        wanted = ordered[block] + inputs.factor[:start, block].t() @ errors[:start]
        within = inputs.factor[block, block]
        for index in range(len(wanted)):
            k = start + index
            steps = (wanted[index] / scale[k]).round_().clamp_(low - zero[k], high - zero[k])
            found[k] = steps + zero[k]
            errors[k] = ordered[k] - steps * scale[k]
            wanted[index + 1 :].addr_(within[index, index + 1 :], errors[k])
    restored = torch.empty_like(found)
    restored[inputs.order] = found
    return restored.t()
