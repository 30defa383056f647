"""Rounding a matrix for its inputs: the outputs change less than by rounding each weight to its nearest integer."""

import pytest
import torch
from torch import Tensor

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.optimize.calibrated_rounding import Inputs, calibrated
from alize.optimize.quantisation import Form
from alize.optimize.round_to_integers import dequantised, quantised

FORMS = [Form(4, 32), Form(4, 96), Form(4, 32, symmetric=False), Form(8, 96), Form(8, 32, symmetric=False)]


def matrix(*, out: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(out, 96, generator=torch.Generator().manual_seed(seed))


def inputs(*, count: int = 400, seed: int = 1) -> Tensor:
    """[n,96]: each is a mixture of a few causes, some are much stronger than others."""
    generator = torch.Generator().manual_seed(seed)
    effects = torch.randn(24, 96, generator=generator)
    mixed = torch.randn(count, 24, generator=generator) @ effects + 0.3 * torch.randn(count, 96, generator=generator)
    return mixed * torch.logspace(-1, 1, 96)


def loss(rows: Tensor, found: Tensor, x: Tensor) -> float:
    return float(((found - rows) @ x.t()).square().sum())


@pytest.mark.parametrize("form", FORMS)
def test_outputs_change_less(form: Form) -> None:
    """Those of the inputs that it was calibrated with, and of others of their kind."""
    rows, x = matrix(), inputs()
    nearest = dequantised(quantised("w", rows, form))
    found = dequantised(calibrated("w", rows, form, Inputs.of(x.t() @ x)))
    assert loss(rows, found, x) < 0.5 * loss(rows, nearest, x)
    fresh = inputs(count=800)[400:]
    assert loss(rows, found, fresh) < 0.6 * loss(rows, nearest, fresh)


@pytest.mark.parametrize("form", FORMS)
def test_integers_stay_within_their_bits(form: Form) -> None:
    x = inputs()
    found = calibrated("w", matrix(), form, Inputs.of(x.t() @ x))
    low, high = form.limits
    assert int(found.values.min()) >= low and int(found.values.max()) <= high
    assert found.values.dtype == (torch.int8 if form.symmetric else torch.uint8)
    assert (found.zero_points is None) == form.symmetric


def test_inputs_that_have_nothing_in_common_make_up_for_nothing() -> None:
    """Each weight gets the integer nearest to it."""
    rows, form = matrix(), Form(4, 32)
    found = calibrated("w", rows, form, Inputs.of(torch.eye(96)))
    scales = found.scales.float().repeat_interleave(32, dim=1)
    nearest = (rows / scales).round().clamp(-8, 7)
    assert torch.equal(found.values.float(), nearest)


def test_the_second_of_two_equal_inputs_takes_what_the_first_lost() -> None:
    """Where two inputs are always equal only the sum of their weights counts: it is off by half a step of one, not of two."""
    rows, form = matrix(out=200), Form(4, 32)
    x = torch.randn(400, 96, generator=torch.Generator().manual_seed(2)) * 0.01
    x[:, 40] = x[:, 41] = torch.randn(400, generator=torch.Generator().manual_seed(3))
    integers = calibrated("w", rows, form, Inputs.of(x.t() @ x))
    off = (dequantised(integers) - rows)[:, 40:42].sum(1).abs()
    steps = integers.scales.float()[:, 1].abs()
    inside = (integers.values[:, 40:42] > -8).all(1) & (integers.values[:, 40:42] < 7).all(1)
    assert (off[inside] <= 0.56 * steps[inside]).all()  # damping leaves a part
    nearest = (dequantised(quantised("w", rows, form)) - rows)[:, 40:42].sum(1).abs()
    assert (nearest > 0.6 * steps).any()


def test_a_row_is_rounded_alike_alone_and_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs()
    known = Inputs.of(x.t() @ x)
    whole = calibrated("w", matrix(), Form(4, 32), known)
    monkeypatch.setattr("alize.optimize.calibrated_rounding._ROWS", 7)
    parts = calibrated("w", matrix(), Form(4, 32), known)
    assert torch.equal(whole.values, parts.values) and torch.equal(whole.scales, parts.scales)


INDEFINITE = torch.full((96, 96), 1.2).fill_diagonal_(1.0)


@pytest.mark.parametrize("gram", [torch.zeros(96, 96), torch.ones(96, 96), 1e30 * torch.ones(96, 96), INDEFINITE])
def test_inputs_that_say_little(gram: Tensor) -> None:
    """No input at all, all of them always equal, or what rounding errors may leave of G: it has no inverse, and damping gives
    it one."""
    found = dequantised(calibrated("w", matrix(), Form(8, 96), Inputs.of(gram.clone())))
    assert (found - matrix()).abs().max() < 0.1


def test_scales_serve_the_inputs_that_are_strong() -> None:
    """The largest weight of each row meets an input that is hardly ever there: it is clipped for the others."""
    rows = matrix()
    rows[:, 7] = 1.15 * rows[:, :32].abs().amax(1)
    gram = torch.eye(96)
    gram[7, 7] = 0.0
    found, even = (calibrated("w", rows, Form(4, 32), Inputs.of(known)) for known in (gram, torch.eye(96)))
    assert found.scales[:, 0].abs().mean() < 0.98 * even.scales[:, 0].abs().mean()


def test_inputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"no finite products: build without --calibrate"):
        Inputs.of(torch.full((96, 96), torch.inf))


def test_what_is_no_number_is_refused() -> None:
    rows = matrix()
    rows[3, 5] = torch.nan
    with pytest.raises(CorruptCheckpoint, match=r"tensor layer\.weight holds NaN"):
        calibrated("layer.weight", rows, Form(4, 32), Inputs.of(torch.eye(96)))
