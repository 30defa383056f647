"""The first difference is looked for a layer at a time, and what was held of a layer goes with it."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.artifact.manifest import ModelInfo
from alize.drafting import model_info
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.validate import locate as module
from alize.validate.locate import Located, locate
from alize.validate.references import as_stored
from tests.tiny import tiny_checkpoint

TOKENS = np.random.default_rng(2).integers(0, 320, 12)
Held = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("locate") / "tiny", layers=3, experts=4, window=6))


class Artifact:
    """Says of its layers what a reference says, in another order of sums, but for what `spoil` does to it."""

    def __init__(self, checkpoint: Checkpoint, spoilt: str = "", follow: dict[int, NDArray[np.int64]] | None = None) -> None:
        self.checkpoint, self.spoilt, self.follow = checkpoint, spoilt, follow or {}
        self.asked: list[list[str]] = []

    def residual_stream(self, folder: Path, tokens: NDArray[np.int64], names: list[str]) -> Held:
        self.asked.append(names)
        walk, held = Reference(self.checkpoint, summation="split").walk(tokens), Held()
        for layer in range(3):
            taps, routing = walk.advance(self.follow.get(layer))
            assert routing is not None
            held |= taps | {f"layers.{layer}.experts": routing.experts.astype(np.float32)}
        if self.spoilt:
            held[self.spoilt][5:] += 1.0
        return {name: held[name] for name in names}

    def cut_experts(self, folder: Path, layer: int, hidden: NDArray[np.float32]) -> object:
        output, routing = Reference(self.checkpoint).mixture(layer).answer(hidden)
        return routing.logits, routing.experts, output


def found(artifact: Artifact) -> Located:
    info: ModelInfo = model_info(artifact.checkpoint)
    rule = as_stored("fp32")
    return locate(artifact, Path(), artifact.checkpoint, info, TOKENS, rule=rule, factor=30.0)  # type: ignore[arg-type]


def test_nothing_is_found_where_nothing_differs(checkpoint: Checkpoint) -> None:
    assert found(Artifact(checkpoint)) == Located()


@pytest.mark.parametrize(
    ("spoilt", "finding"),
    [
        ("layers.1.heads", "layer 1, attention, from position 5 on: "),
        ("layers.2.router_logits", "layer 2, router, from position 5 on: the router or the norm before it is wrong"),
        (
            "layers.1.mlp",
            "layer 1, MLP, from position 5 on: the norm before the experts or what becomes of their answer is wrong",
        ),
    ],
)
def test_the_first_difference_is_found(spoilt: str, finding: str, checkpoint: Checkpoint) -> None:
    located = found(Artifact(checkpoint, spoilt))
    assert len(located.findings) == 1
    assert located.findings[0].startswith(finding)


def test_another_choice_is_blamed_on_its_own_layer(checkpoint: Checkpoint) -> None:
    """Everything behind it differs too, as it has to."""
    routing = Reference(checkpoint).run([TOKENS]).routing[0]
    made = routing.experts[1].copy()
    made[4] = np.argsort(routing.logits[1, 4])[:2]
    (finding,) = found(Artifact(checkpoint, follow={1: made})).findings
    assert finding.startswith("layer 1, position 4: chose experts {")


def test_as_many_layers_as_fit_are_asked_for_and_no_more_than_needed(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Artifact(checkpoint, "layers.1.heads")
    found(whole)
    assert len(whole.asked) == 1
    monkeypatch.setattr(module, "_TAP_BYTES", 1)
    single = Artifact(checkpoint, "layers.1.heads")
    found(single)
    parts = ("heads", "attention", "router_logits", "mlp", "experts")
    assert single.asked == [[f"layers.{layer}.{part}" for part in parts] for layer in (0, 1)]
