"""Weights stream: while one is written no other is in memory, however many layers there are."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from alize.compilers import compiler_for
from alize.export.hub import export_hub
from alize.models.checkpoint import Checkpoint, Weight
from alize.models.reference import Reference
from alize.optimize.passes import write
from alize.optimize.quantisation import Quantisation
from alize.optimize.quantise import _Matrix, quantise
from alize.optimize.store_weights import store_weights
from tests.tiny import RUN_HERE, tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("checkpoint") / "wide"
    return Checkpoint.open(tiny_checkpoint(folder, hidden_size=256, intermediate_size=512, heads=8, kv_heads=4, dtype="bfloat16"))


class Alive:
    """Counts the tensors that were loaded and are still there."""

    def __init__(self) -> None:
        self.most = 0
        self.loads = 0
        self._seen: list[weakref.ref[torch.Tensor]] = []

    def add(self, tensor: torch.Tensor) -> None:
        gc.collect()
        self._seen = [seen for seen in self._seen if seen() is not None]
        self._seen.append(weakref.ref(tensor))
        self.loads += 1
        self.most = max(self.most, len(self._seen))


@pytest.mark.parametrize("weights", ["bf16", "fp32", "int4-g32"])
@pytest.mark.parametrize("target", RUN_HERE)
def test_a_lowering_holds_one_weight(
    target: str, weights: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, read = Alive(), Checkpoint.read

    def watched(self: Checkpoint, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
        tensor = read(self, weight, dtype)
        if tensor.ndim > 1:  # norms are small enough to be written into the graph itself
            alive.add(tensor)
        return tensor

    monkeypatch.setattr(Checkpoint, "read", watched)
    compiler_for(target).lowering.lower(export_hub(checkpoint), tmp_path, weights=weights)
    assert alive.loads >= 3 * 7 + 2
    assert alive.most == 1


def test_no_rounded_matrix_waits_while_another_is_written(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, waiting = export_hub(checkpoint), set[str]()
    store_weights("fp32")(hub)
    quantise(Quantisation(4, 32, symmetric=False))(hub)
    most, take = 0, _Matrix._take

    def watched(matrix: _Matrix, part: str) -> torch.Tensor:
        nonlocal most
        found = take(matrix, part)
        (waiting.add if matrix._waiting else waiting.discard)(matrix.name)
        most = max(most, len(waiting))
        return found

    monkeypatch.setattr(_Matrix, "_take", watched)
    write(hub, tmp_path / "model.onnx")
    assert (most, waiting) == (1, set())


def test_a_reference_run_holds_one_layer(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, whole = Alive(), Reference._whole

    def watched(self: Reference, name: str) -> torch.Tensor:
        tensor = whole(self, name)
        alive.add(tensor)
        return tensor

    monkeypatch.setattr(Reference, "_whole", watched)
    Reference(checkpoint).run([torch.arange(9).numpy()])
    assert alive.loads == 3 * 9 + 1
    assert alive.most <= 9  # q, k, v, o, gate, up, down and two norms
