"""Builds of a mix of int4 and int8: what is chosen for a budget, that the estimate is true, and that it is sealed and proven."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from alize.arguments import parse
from alize.artifact.pieces import Pieces
from alize.building import build
from alize.calibration_text import BUILT_IN, CalibrationText
from alize.compilers import COMPILERS, weights_for
from alize.errors import UsageError
from alize.mixing import Mix, choose, plan_mix
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.models.registry import single_weights
from alize.optimize.quantisation import Quantisation, unit_of
from alize.optimize.rounded import Rounded
from alize.progress import SilentProgress
from alize.rounding import round_weights
from alize.sensitivity import losses, summed, through_head
from alize.validate import validate_artifact
from alize.validate.judge import Budget
from alize.validate.measure import measure
from alize.validate.stored import as_stored
from tests.builds.conftest import BuiltOnce
from tests.tiny import RUN_HERE, tiny_checkpoint

GENEROUS = Budget(quantisation_kl=1e3, quantisation_kl_max=1e3, runtime_kl=1e3, runtime_kl_max=1e3)
WEIGHTS = "mixed-b6-g32"
SHAPE = {"tokenizer": True, "hidden_size": 64, "intermediate_size": 96}


class Stops(SilentProgress):
    """Interrupts at a step of the weighing."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self, n: int = 1) -> None:
        self.steps -= n
        if self.steps < 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("dense") / "model", window=6, dtype="bfloat16", **SHAPE))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("mixture") / "model", experts=4, **SHAPE))  # type: ignore[arg-type]


@pytest.fixture(params=["dense", "mixture"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    found: Checkpoint = request.getfixturevalue(request.param)
    return found


def shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: weight.shape for name, weight in single_weights(checkpoint).items()}


def planned(checkpoint: Checkpoint, folder: Path, weights: str = WEIGHTS) -> Mix:
    return plan_mix(checkpoint, weights, CalibrationText.open(BUILT_IN), Pieces(folder), progress=SilentProgress())


def lost(checkpoint: Checkpoint, rounded: Rounded, tokens: list[np.ndarray], only: set[str] | None = None) -> float:
    """Mean KL of the integers, or of some of them alone."""
    stored = as_stored(rounded.quantisation, rounded)

    def rule(name: str, values: object, rows: object = slice(None), /) -> object:
        return values.float() if only is not None and name not in only else stored(name, values, rows)  # type: ignore

    expected = Reference(checkpoint).run(tokens).logits
    found = Reference(checkpoint, weights=rule).run(tokens).logits  # type: ignore[arg-type]
    kl = [measure(left, right, np.arange(len(left))).kl for left, right in zip(expected, found, strict=True)]
    return float(np.concatenate(kl).mean())


def test_what_is_expected_is_what_is_measured(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of each unit alone, of very different sizes, on the same tokens; the estimate looks at small changes only, and samples."""
    tokens = [sequence[:128] for sequence in CalibrationText.open(BUILT_IN).sequences(checkpoint)[:3]]
    int8 = Quantisation.parse("mixed-channel")
    assert int8 is not None
    known = losses(checkpoint, int8, tokens, Pieces(tmp_path / "walk"), progress=SilentProgress())
    rounded = round_weights(checkpoint, "int4-channel", Pieces(tmp_path / "rounded"), progress=SilentProgress())
    assert rounded is not None and set(known) == {name for name in rounded.forms if unit_of(name)}
    units = {str(unit_of(name)) for name in known}
    expected, measured = np.empty((2, len(units)))
    for place, unit in enumerate(sorted(units)):
        members = {name for name in known if unit_of(name) == unit}
        expected[place] = sum(known[name][0] for name in members)
        measured[place] = lost(checkpoint, rounded, tokens, members)
    ratios = (expected / measured)[measured < 0.1]
    assert np.corrcoef(np.log(expected), np.log(measured))[0, 1] > 0.9
    assert len(ratios) > 5 and 0.7 < np.median(ratios) < 1.4


def test_directions_have_the_covariance_of_the_fisher_information() -> None:
    """diag(p) - p p^T, through a head that answers the logits themselves."""
    logits, signs = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]), torch.Generator().manual_seed(0)
    drawn = torch.cat([through_head(logits, torch.eye(3), signs) for _ in range(2000)])  # [n,2,3]
    assert drawn.sum(-1).abs().max() < 1e-6
    p = logits.softmax(-1)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(torch.einsum("nri,nrj->rij", drawn, drawn) / len(drawn), expected, rtol=0, atol=0.01)


def test_sequences_correct_each_kind_of_matrix() -> None:
    """Tokens tell layers apart; of value projections sequences say twice as much, of the others the same."""
    v, o = ([f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(2)] for part in "vo")
    found = {v[0]: [1.0, 1.0, 0.5], v[1]: [4.0, 12.0, 0.5], o[0]: [3.0, 6.0, 0.0], o[1]: [3.0, 0.0, 0.0]}
    assert summed(found, 0.5) == {v[0]: (1.0, 0.5), v[1]: (4.0, 2.0), o[0]: (1.5, 0.0), o[1]: (1.5, 0.0)}


def test_a_mix_loses_less_than_one_that_was_not_chosen(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of the same size: the units that it has in int8, against as many bits of the others."""
    text = CalibrationText.open(BUILT_IN)
    mix = planned(checkpoint, tmp_path / "plan")
    wide = mix.quantisation.wide
    known = {name: (float(unit_of(name) not in wide), 0.0) for name in shapes(checkpoint) if unit_of(name)}
    quantisation = Quantisation.parse(WEIGHTS)
    assert quantisation is not None
    other = choose(shapes(checkpoint), quantisation, known)
    assert abs(other.bits - mix.bits) < 0.3 and other.kl > 0
    found = []
    for number, chosen in enumerate((mix, other)):
        rounded = round_weights(checkpoint, WEIGHTS, Pieces(tmp_path / str(number)), mix=chosen, progress=SilentProgress())
        assert rounded is not None
        found.append(lost(checkpoint, rounded, [text.sequences(checkpoint)[1][:128]]))
    assert found[0] < 0.7 * found[1]


@pytest.mark.parametrize("steps", [1, 4])
def test_an_interrupted_walk_goes_on(steps: int, dense: Checkpoint, tmp_path: Path) -> None:
    """On the way there or back; and gradients that are lost are made again."""
    whole = planned(dense, tmp_path / "whole")
    text, halves = CalibrationText.open(BUILT_IN), Pieces(tmp_path / "halves")
    with pytest.raises(KeyboardInterrupt):
        plan_mix(dense, WEIGHTS, text, halves, progress=Stops(steps))
    there = len(halves)
    assert there
    if steps == 4:
        halves.drop("mix.gradient.2" if halves.get("mix.gradient.2") else "mix.gradient.1")
    assert plan_mix(dense, WEIGHTS, text, Pieces(halves.folder), progress=SilentProgress()) == whole
    assert [path.name for path in sorted((halves.folder / "pieces").iterdir())] == ["mix.losses"]


def test_experts_of_a_layer_share_a_form(mixture: Checkpoint, tmp_path: Path) -> None:
    """Gates and ups of all of them lie in one on some targets, and so do their downs."""
    mix = planned(mixture, tmp_path / "plan")
    layers = {unit: {mix.quantisation.form(name, shape) for name, shape in shapes(mixture).items() if unit_of(name) == unit}
              for unit in ("layers.0.experts.gate_up_proj", "layers.2.experts.down_proj")}  # fmt: skip
    assert all(len(forms) == 1 for forms in layers.values())
    stack = mix.quantisation.form("model.layers.0.mlp.experts.gate_proj", (4, 96, 64))
    assert {stack} == layers["layers.0.experts.gate_up_proj"]
    assert mix.quantisation.form("model.layers.0.mlp.gate.weight", (4, 64)) is None


def test_the_budget_is_spent_and_kept(dense: Checkpoint, tmp_path: Path) -> None:
    mix = planned(dense, tmp_path / "plan")
    assert mix.bits <= 6 < mix.bits + 0.5
    known = {name: shape for name, shape in shapes(dense).items() if unit_of(name)}
    size = sum(form.stored_bytes(shape) for name, shape in known.items() if (form := mix.quantisation.form(name, shape)))
    assert mix.bits == pytest.approx(8 * size / sum(rows * columns for rows, columns in known.values()))
    bits, kl = zip(*mix.curve, strict=True)
    assert list(bits) == sorted(bits) and list(kl) == sorted(kl, reverse=True)
    steps = np.diff(kl) / np.diff(bits)
    assert (np.diff(steps) >= -1e-12).all()  # the first bits save most
    assert {forms.bits for name, shape in shapes(dense).items() if (forms := mix.quantisation.form(name, shape))} == {4, 8}


def test_both_targets_get_the_same_integers_and_prove_them(built: BuiltOnce) -> None:
    """A mix of matrices on their integer kernels, sealed, said, and validated again from the manifest alone."""
    options = {"weights": "mixed", "group_size": "32", "bits": 6.0, "budget": GENEROUS}
    found = [built(target, model="mixtral", **options) for target in RUN_HERE]
    first, second = (one.manifest.target.structure for one in found)
    assert [first[name] for name in ("mixed", "integers_sha256")] == [second[name] for name in ("mixed", "integers_sha256")]
    for one in found:
        target = one.manifest.target
        assert (one.manifest.validation.verdict, target.weights) == ("pass", "mixed-b6-g32")
        kinds = {form.split()[0]: count for form, count in target.structure["integers"].items()}
        assert set(kinds) == {"int4", "int8"} and 5.5 < target.structure["mixed"]["bits"] <= 6
        asked = parse(shlex.split(one.manifest.rebuild)[1:])
        assert (asked.weights, asked.bits, asked.group_size) == ("mixed", 6.0, "32")
        page = (one.folder / "report.html").read_text(encoding="utf-8")
        assert "What bits buy" in page and "measured by the validation" in page
    again = validate_artifact(found[1].folder, source=str(found[1].checkpoint), budget_seconds=300)
    assert again["verdict"] == "pass" and not again["findings"]


def test_what_cannot_be_mixed_is_refused(dense: Checkpoint, tmp_path: Path) -> None:
    def refusal(source: Path = dense.folder, target: str = "openvino", weights: str = "mixed", **options: object) -> str:
        with pytest.raises(UsageError) as caught:
            build(str(source), output=tmp_path / "out", target=target, weights=weights, **options)  # type: ignore[arg-type]
        return str(caught.value)

    assert refusal(bits=4.0) == (
        "--bits 4: int4 alone takes 4.30 bits a weight here, scales counted: give from 4.30 to 8.23, or larger groups"
    )
    assert refusal(bits=9.0) == "--bits 9: int8 takes 8.23 bits a weight here: use --weights int8, or give from 4.30 to 8.23"
    assert refusal(weights="int4", bits=5.0) == "--bits 5 is for --weights mixed, not for int4"
    assert refusal(weights="bf16", bits=5.0) == "--bits 5 is for --weights mixed, not for bf16"
    bare = tiny_checkpoint(tmp_path / "bare")
    assert refusal(bare, bits=6.0).endswith("tokenizer.json is missing; add it or leave --weights mixed out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="--weights mixed-b5-g128 does not run on device gpu: use fp16 or bf16 or int8 or int4"):
        weights_for(COMPILERS["tensorrt-rtx"].plan("gpu"), "gpu", asked="mixed-b5-g128", stored="bf16")
