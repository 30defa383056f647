"""A wrong mixture of experts is taken apart until what is wrong with it has a name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.compilers import compiler_for
from alize.drafting import draft_manifest
from alize.export.hub import export_hub
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Mixture, Reference
from alize.optimize.quantisation import Quantisation
from alize.validate.cut_out import CutOut, examine
from alize.validate.stored import as_stored
from tests.tiny import RUN_HERE, tiny_checkpoint

Answer = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
SIZES = [(4, 1), (4, 2), (8, 2), (8, 3)]


@pytest.fixture(scope="module", params=SIZES, ids=str)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    experts, top_k = request.param
    folder = tiny_checkpoint(tmp_path_factory.mktemp("cut") / "tiny", layers=1, experts=experts, top_k=top_k)
    return Reference(Checkpoint.open(folder)).mixture(0)


class Probe:
    """An artifact whose layer answers as `answer` says, in place of a compiled graph."""

    def __init__(self, answer: Callable[[NDArray[np.float32]], Answer]) -> None:
        self.answer = answer

    def cut_experts(self, folder: Path, layer: int, hidden: NDArray[np.float32]) -> Answer:
        return self.answer(hidden)


def all_experts(mixture: Mixture, answer: Callable[[NDArray[np.float32]], Answer]) -> CutOut:
    top_k = mixture.answer(np.ones((1, 32), np.float32))[1].experts.shape[1]
    experts = range(len(mixture.router))
    return examine(Probe(answer), Path(), mixture, 2, experts, top_k=top_k, factor=30.0)  # type: ignore[arg-type]


def combined(mixture: Mixture, shares: Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]) -> CutOut:
    """Of a layer whose answer is the experts' answers times shares(probabilities [n,E], chosen [n,k]) [n,E]."""

    def answer(hidden: NDArray[np.float32]) -> Answer:
        routing = mixture.answer(hidden)[1]
        powers = np.exp(routing.logits.astype(np.float64))
        weights = shares(powers / powers.sum(axis=1, keepdims=True), routing.experts)
        count = weights.shape[1]
        alone = (mixture.answer(hidden, follow=np.full((len(hidden), 1), e))[0] for e in range(count))
        output = sum(one * weights[:, [e]] for e, one in enumerate(alone))
        return routing.logits, routing.experts, np.asarray(output, np.float32)

    return all_experts(mixture, answer)


def renormalised(probabilities: NDArray[np.float64], chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    kept = probabilities * (np.arange(probabilities.shape[1]) == chosen[:, :, None]).any(axis=1)
    return kept / kept.sum(axis=1, keepdims=True)


def test_a_right_layer(mixture: Mixture) -> None:
    everyone = tuple(range(len(mixture.router)))
    assert combined(mixture, renormalised) == CutOut(everyone, (), (), ())


def test_swapped_experts(mixture: Mixture) -> None:
    order = np.arange(len(mixture.router))
    order[[1, 3]] = 3, 1
    found = combined(mixture, lambda probabilities, chosen: renormalised(probabilities, chosen)[:, order])
    assert (found.wrong, found.findings) == ((1, 3), ("layer 2: experts 1 and 3 are swapped",))


def test_no_renormalisation(mixture: Mixture) -> None:
    found = combined(mixture, lambda probabilities, chosen: probabilities * (renormalised(probabilities, chosen) > 0))
    assert found.findings == ("layer 2: the shares of the chosen experts are not renormalised",)
    assert found.wrong == tuple(range(len(mixture.router)))


def test_an_expert_that_counts_twice(mixture: Mixture) -> None:
    twice = np.where(np.arange(len(mixture.router)) == 2, 2.0, 1.0)
    found = combined(mixture, lambda probabilities, chosen: renormalised(probabilities, chosen) * twice)
    assert found.wrong == (2,)
    assert found.findings[0].startswith("layer 2: the answer of expert 2 is wrong (expert 2 counts ")


def test_everyone_answers_a_little(mixture: Mixture) -> None:
    found = combined(mixture, lambda probabilities, _: probabilities)
    assert found.wrong == tuple(range(len(mixture.router)))
    assert "counts" in found.findings[0]


@pytest.mark.parametrize("value", [0.1, np.nan, np.inf])
def test_an_expert_whose_answer_is_something_else(value: float, mixture: Mixture) -> None:
    def answer(hidden: NDArray[np.float32]) -> Answer:
        output, routing = mixture.answer(hidden)
        noise = np.random.default_rng(0).normal(size=output.shape) * value
        asked = (routing.experts == 2).any(axis=1, keepdims=True)
        return routing.logits, routing.experts, (output + np.where(asked, noise, 0)).astype(np.float32)

    found = all_experts(mixture, answer)
    assert (found.wrong, found.findings) == ((2,), ("layer 2: the answer of expert 2 is wrong",))


def test_a_router_that_chooses_otherwise(mixture: Mixture) -> None:
    def answer(hidden: NDArray[np.float32]) -> Answer:
        routing = mixture.answer(hidden)[1]
        chosen = (routing.experts + 1) % len(mixture.router)
        return routing.logits, chosen, mixture.answer(hidden, follow=chosen)[0]

    found = all_experts(mixture, answer)
    assert found.findings[0].startswith("layer 2: the router chooses experts {")
    assert found.findings[0].endswith("hidden states of the cut-out layer)")


def test_a_router_whose_logits_are_wrong(mixture: Mixture) -> None:
    def answer(hidden: NDArray[np.float32]) -> Answer:
        output, routing = mixture.answer(hidden)
        logits = routing.logits.copy()
        logits[:, 3] += 0.01
        return logits, routing.experts, output

    assert all_experts(mixture, answer).findings == ("layer 2: the router's logits of experts {3} are wrong",)


def test_only_those_asked_for_are_run(mixture: Mixture) -> None:
    top_k = mixture.answer(np.ones((1, 32), np.float32))[1].experts.shape[1]
    asked: list[int] = []

    def answer(hidden: NDArray[np.float32]) -> Answer:
        output, routing = mixture.answer(hidden)
        asked.extend(routing.experts[:, 0].tolist())
        return routing.logits, routing.experts, output

    found = examine(Probe(answer), Path(), mixture, 2, [0, 3], top_k=top_k, factor=30.0)  # type: ignore[arg-type]
    assert found.ran == (0, 3)
    assert set(asked) == {0, 3}


def test_an_expert_that_only_ties_never_ran() -> None:
    """Expert 0 and 1 tie always; the operator takes 0, this engine takes 1: then 0 is what never runs."""

    class Tied:
        router = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)

        def answer(self, hidden: NDArray[np.float32], **_: object) -> object:
            logits = hidden @ self.router.T
            from alize.models.routing import Routing

            return hidden, Routing(np.argmax(logits, axis=1)[:, None], logits, np.zeros(len(hidden), np.float32))

    def answer(hidden: NDArray[np.float32]) -> Answer:
        return hidden @ Tied.router.T, np.full((len(hidden), 1), 1), hidden

    found = examine(Probe(answer), Path(), Tied(), 0, [0], top_k=1, factor=30.0)  # type: ignore[arg-type]
    assert found == CutOut((), (0,), (), ())


def test_nothing_to_run() -> None:
    class Zero:
        router = np.zeros((3, 2), np.float32)

    found = examine(Probe(lambda _: pytest.fail("it was run")), Path(), Zero(), 0, [2], top_k=1, factor=30.0)  # type: ignore[arg-type]
    assert found == CutOut((), (2,), (), ())


@pytest.mark.parametrize("target", RUN_HERE)
@pytest.mark.parametrize("weights", ["int8-channel", "int4-g32"])
def test_experts_in_integers_are_asked_exactly(target: str, weights: str, tmp_path: Path) -> None:
    """An engine that rounds what integers are multiplied with, as it does by default, would be far outside the tolerance."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "tiny", layers=1, experts=4, top_k=2))
    compiler = compiler_for(target)
    options = draft_manifest(checkpoint, compiler, device="cpu", weights=weights).target.options
    (tmp_path / "out").mkdir()
    compiler.lowering.lower(export_hub(checkpoint), tmp_path / "out", weights=weights, options=options)
    quantisation = Quantisation.parse(weights)
    assert quantisation is not None
    rule = as_stored(quantisation, compiler.probe.stored_integers(tmp_path / "out"))
    mixture = Reference(checkpoint, weights=rule).mixture(0)
    found = examine(compiler.probe, tmp_path / "out", mixture, 0, range(4), top_k=2, factor=30.0)
    assert found == CutOut((0, 1, 2, 3), (), (), ())
