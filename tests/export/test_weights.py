"""Weights stay in the checkpoint's shards until a model is written, and then pass through memory one after another."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from alize.errors import ExportFailed
from alize.export import weights
from alize.export.hub import export_graph, export_hub, save
from alize.export.weights import StreamedWeight, attach_weights
from alize.models.checkpoint import Checkpoint, Weight
from alize.models.mistral import Config, convert_weights
from tests.export.hubs import Tiny, Watch, checked, make_tiny, nodes

DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@pytest.fixture(scope="module", params=sorted(DTYPES))
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, str]:
    """Tied, so that one matrix is looked up in and multiplied with."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return make_tiny(folder, layers=1, tied=True, shards=3, dtype=request.param), request.param


def weights_of(model: ir.Model) -> dict[str, StreamedWeight]:
    found = {str(value.name): value.const_value for value in model.graph.initializers.values()}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, StreamedWeight)}


def test_no_weight_is_read_at_export(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: Any) -> Tensor:
        raise AssertionError("a weight was read")

    for name in ("read", "tensor"):
        monkeypatch.setattr(Checkpoint, name, touched)
    model = export_hub(tiny.checkpoint)
    assert len(weights_of(model)) == len(tiny.checkpoint.tensors)
    with pytest.raises(AssertionError, match="a weight was read"):
        save(model, tmp_path / "model.onnx")


def test_weights_pass_through_memory_one_at_a_time(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model object keeps none, before or after."""
    watch = Watch(monkeypatch)
    model = export_hub(tiny.checkpoint)
    assert not watch.given
    save(model, tmp_path / "model.onnx")
    assert len(watch.given) == len(tiny.checkpoint.tensors)
    assert watch.most == 1
    assert watch.alive() == 0


def test_a_weight_is_made_anew_each_time(tiny: Tiny) -> None:
    weight = weights_of(export_hub(tiny.checkpoint))["model.norm.weight"]
    first = weight.numpy()
    first[:] = 7
    assert (weight.numpy() != 7).all()


def test_initialisers_are_the_stored_bits(stored: tuple[Tiny, str], tmp_path: Path) -> None:
    tiny, dtype = stored
    model = export_hub(tiny.checkpoint)
    found = weights_of(model)
    assert set(found) == set(tiny.checkpoint.tensors)
    for name, weight in found.items():
        value = model.graph.initializers[name]
        assert value.dtype == weight.dtype == DTYPES[dtype], name
        assert value.shape == weight.shape == ir.Shape(tiny.checkpoint.tensors[name].shape), name
        stored_bits = tiny.checkpoint.tensor(name).contiguous().view(torch.uint8).numpy().tobytes()
        assert weight.tobytes() == stored_bits, name
    checked(model, tmp_path / "model.onnx")


def test_what_is_computed_is_float32(stored: tuple[Tiny, str]) -> None:
    """A Cast stands behind each weight; behind the rows that are looked up, not behind the whole table."""
    tiny, dtype = stored
    model = export_hub(tiny.checkpoint)
    (gather,) = nodes(model, "Gather")
    assert gather.inputs[0] is model.graph.initializers["model.embed_tokens.weight"]
    assert gather.outputs[0].dtype == DTYPES[dtype]
    assert [use.node.op_type for use in gather.outputs[0].uses()] == ["Cast"]
    for name in weights_of(model):
        readers = {use.node.op_type for use in model.graph.initializers[name].uses()}
        assert readers == ({"Gather", "Cast"} if name == "model.embed_tokens.weight" else {"Cast"}), name
    for cast in nodes(model, "Cast"):
        assert cast.attributes["to"].as_int() == ir.DataType.FLOAT


def test_graph_and_checkpoint_must_agree(tiny: Tiny) -> None:
    config = Config.from_dict(tiny.checkpoint.config)
    wanted = convert_weights(config, tiny.checkpoint) | {"model.extra.weight": Weight(("lm_head.weight",), (320, 32))}
    with pytest.raises(ExportFailed, match=r"does not use model\.extra\.weight and 0 more weights"):
        attach_weights(export_graph(tiny.checkpoint.config), tiny.checkpoint, wanted)


def test_stored_in_another_dtype() -> None:
    values = torch.tensor([[1.0, 1e-3], [3.3, -65000.0]])
    weight = StreamedWeight(lambda: values, dtype=torch.float32, shape=(2, 2), name="w")
    for dtype in (torch.float16, torch.bfloat16):
        other = weight.to(dtype)
        assert (other.dtype, other.name, other.shape) == (weights.ONNX_DTYPES[dtype], "w", weight.shape)
        assert other.tobytes() == values.to(dtype).view(torch.uint8).numpy().tobytes()


def test_transposed() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    weight = StreamedWeight(lambda: values, dtype=torch.float32, shape=(2, 3), name="w")
    other = weight.to(torch.float16).transposed("v")
    assert (other.dtype, other.name, list(other.shape)) == (ir.DataType.FLOAT16, "v", [3, 2])
    assert other.tobytes() == values.T.contiguous().half().view(torch.uint8).numpy().tobytes()
