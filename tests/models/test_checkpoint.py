"""Checkpoint folders: what is read, and how each kind of damage is named before or while the weights are read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alize.errors import CorruptCheckpoint, SourceError, SourceNotFound, UnsupportedModel
from alize.models import checkpoint as checkpoint_module
from alize.models.checkpoint import INDEX, SINGLE, Checkpoint, Weight
from alize.models.registry import family_for
from tests.tiny import edit_config, edit_tensor, tiny_checkpoint, write_json

FIRST = "model-00001-of-00002.safetensors"
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "model", window=4, layers=2, tokenizer=True)


def read_everything(folder: Path) -> None:
    """What a build does with a source: open, configure, convert, look for NaN."""
    checkpoint = Checkpoint.open(folder)
    family = family_for(checkpoint.config)
    weights = family.convert_weights(family.config.from_dict(checkpoint.config), checkpoint)
    for weight in weights.values():
        for source in weight.sources:
            checkpoint.check_finite(source)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_tensors_are_those_that_safetensors_reads(tmp_path: Path, shards: int, dtype: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", shards=shards, dtype=dtype, hidden_size=12, heads=2, kv_heads=1, head_size=6)
    checkpoint = Checkpoint.open(folder)
    expected = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert checkpoint.tensor(name).dtype == tensor.dtype
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        info = checkpoint.tensors[name]
        assert info.file.read_bytes()[info.start : info.start + info.size] == tensor.view(torch.uint8).numpy().tobytes()
    read_everything(folder)


def test_tensors_are_mapped_not_loaded(folder: Path) -> None:
    """The same memory each time: nothing is copied."""
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensor(QUERY).data_ptr() == checkpoint.tensor(QUERY).data_ptr()


def test_unaligned_shard_is_read(tmp_path: Path) -> None:
    """Writers that do not pad the header put tensors at odd places."""
    folder = tiny_checkpoint(tmp_path / "model", shards=1)
    expected = load_file(folder / SINGLE)[QUERY].clone()
    data = (folder / SINGLE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip(b" ")
    header += b" " * ((8 + len(header)) % 2 == 0)
    (folder / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.tensors[QUERY].start % 2 == 1
    assert torch.equal(checkpoint.tensor(QUERY), expected)
    assert checkpoint.tensor(QUERY).data_ptr() % 4 == 0  # copied to where a kernel may load it


def test_read_converts_and_stacks(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    one = checkpoint.read(Weight(sources=(QUERY,), shape=(32, 32)), torch.float32)
    one *= 2  # memory of its own: the file stays as it is
    assert torch.equal(one / 2, checkpoint.tensor(QUERY))
    stacked = checkpoint.read(Weight(sources=(QUERY, QUERY), shape=(2, 32, 32)), torch.float16)
    assert (stacked.shape, stacked.dtype) == ((2, 32, 32), torch.float16)


def test_companions(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("x")
    (folder / "README.md").write_text("x")
    names = [path.name for path in Checkpoint.open(folder).companions]
    assert names == [
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_identity_is_of_config_and_weights_only(tmp_path: Path) -> None:
    def identity(name: str, **options: Any) -> str:
        return Checkpoint.open(tiny_checkpoint(tmp_path / name, **{"window": 4} | options)).sha256()

    same = identity("a")
    assert same == identity("another-name", shards=5) == identity("single", shards=1, tokenizer=True)
    assert same == identity("moved", config={"_name_or_path": "/home/someone/model"})
    others = [identity("b", seed=1), identity("c", window=5), identity("d", dtype="float16"), identity("e", theta=2e4)]
    assert len({same, *others}) == 5


def test_identity_sees_one_changed_byte(folder: Path) -> None:
    before = Checkpoint.open(folder).sha256()
    data = bytearray((folder / FIRST).read_bytes())
    data[-1] ^= 1
    (folder / FIRST).write_bytes(data)
    assert Checkpoint.open(folder).sha256() != before


def truncate(folder: Path) -> None:
    os.truncate(folder / FIRST, (folder / FIRST).stat().st_size - 1)


def truncate_to(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / FIRST, size)


def append_byte(folder: Path) -> None:
    with (folder / FIRST).open("ab") as file:
        file.write(b"\0")


def not_a_shard(folder: Path) -> None:
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 4943162336\n"
    (folder / FIRST).write_bytes(text)


def rewrite_header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = (folder / FIRST).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    (folder / FIRST).write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])


def lying_shape(folder: Path) -> None:
    rewrite_header(folder, lambda header: header[QUERY].update(shape=[32, 33]))


def overlapping_tensors(folder: Path) -> None:
    norm = "model.layers.0.input_layernorm.weight"
    rewrite_header(folder, lambda header: header[norm].update(data_offsets=[0, 128]))


def unknown_dtype(folder: Path) -> None:
    rewrite_header(folder, lambda header: header[QUERY].update(dtype="F4"))


def missing_shard(folder: Path) -> None:
    (folder / FIRST).unlink()


def index_to_nowhere(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][QUERY] = "model-00002-of-00002.safetensors"
    write_json(folder / INDEX, index)


def index_out_of_the_folder(folder: Path) -> None:
    shutil.copy(folder / FIRST, folder.parent / "other.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][QUERY] = "../other.safetensors"
    write_json(folder / INDEX, index)


def index_without_map(folder: Path) -> None:
    write_json(folder / INDEX, {"metadata": {}})


def no_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mistral",')


def config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def tensor_left_out(folder: Path) -> None:
    tensors = load_file(folder / FIRST)
    del tensors[QUERY]
    save_file(tensors, folder / FIRST)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][QUERY]
    write_json(folder / INDEX, index)


def wrong_shape(folder: Path) -> None:
    edit_tensor(folder, QUERY, torch.zeros(32, 31))


def wrong_dtype(folder: Path) -> None:
    edit_tensor(folder, QUERY, torch.zeros(32, 32, dtype=torch.int8))


def set_last(value: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensor = load_file(folder / FIRST)[QUERY].clone()
        tensor[-1, -1] = value
        edit_tensor(folder, QUERY, tensor)

    return damage


def unexpected_tensor(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False, num_hidden_layers=1)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncate, FIRST),
        (truncate_to(100), FIRST),
        (lambda folder: (folder / FIRST).write_bytes((4).to_bytes(8, "little") + b"rubbish!"), FIRST),
        (truncate_to(0), FIRST),
        (truncate_to(5), FIRST),
        (append_byte, FIRST),
        (not_a_shard, FIRST),
        (lying_shape, QUERY),
        (overlapping_tensors, "begins at byte"),
        (unknown_dtype, "F4"),
        (missing_shard, FIRST),
        (index_to_nowhere, QUERY),
        (index_out_of_the_folder, "../other.safetensors"),
        (index_without_map, INDEX),
        (no_index, INDEX),
        (broken_config, "config.json"),
        (config_is_a_list, "config.json"),
        (tensor_left_out, QUERY),
        (wrong_shape, QUERY),
        (wrong_dtype, QUERY),
        (set_last(float("nan")), QUERY),
        (set_last(float("inf")), QUERY),
        (set_last(float("-inf")), QUERY),
        (unexpected_tensor, "model.layers.1."),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], named: str) -> None:
    read_everything(folder)
    damage(folder)
    with pytest.raises(CorruptCheckpoint) as error:
        read_everything(folder)
    message = str(error.value)
    assert named in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", [truncate, truncate_to(100), missing_shard, index_to_nowhere])
def test_damaged_shards_are_found_before_any_tensor_is_read(
    folder: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(folder)
    monkeypatch.setattr(np, "memmap", None)
    with pytest.raises(CorruptCheckpoint):
        Checkpoint.open(folder)


def test_nan_is_found_in_any_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_last(float("nan"))(folder)
    monkeypatch.setattr(checkpoint_module, "CHUNK", 7)
    with pytest.raises(CorruptCheckpoint, match="nan at element 1023"):
        Checkpoint.open(folder).check_finite(QUERY)


def own_layout(folder: Path) -> None:
    (folder / "config.json").unlink()
    write_json(folder / "params.json", {"dim": 4096})


def consolidated_only(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "consolidated.safetensors").write_bytes(b"")


def pickle_only(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"")


def gguf_only(folder: Path) -> None:
    pickle_only(folder)
    (folder / "pytorch_model-00001-of-00002.bin").rename(folder / "model.gguf")


def quantised(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "awq", "bits": 4})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (own_layout, "params.json"),
        (consolidated_only, "consolidated"),
        (pickle_only, "pytorch_model-00001-of-00002.bin"),
        (gguf_only, "model.gguf"),
        (quantised, "awq"),
    ],
)
def test_other_layouts_are_refused_by_name(folder: Path, change: Callable[[Path], None], named: str) -> None:
    change(folder)
    with pytest.raises(UnsupportedModel, match=named):
        Checkpoint.open(folder)


def test_own_layout_beside_the_hugging_face_one_is_left_alone(folder: Path) -> None:
    """Several published repositories hold both."""
    before = Checkpoint.open(folder).sha256()
    write_json(folder / "params.json", {"dim": 4096})
    (folder / "consolidated.safetensors").write_bytes(b"")
    assert Checkpoint.open(folder).sha256() == before


def test_nothing_there(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SourceNotFound, match="no such folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(SourceNotFound, match=r"config\.json"):
        Checkpoint.open(tmp_path)
    for path in folder.glob("model*"):
        path.unlink()
    with pytest.raises(SourceNotFound, match=SINGLE):
        Checkpoint.open(folder)


def test_tolerated_extra_tensors(tmp_path: Path) -> None:
    """What old checkpoints and transformers' own saving leave behind, and transformers does not load either."""
    folder = tiny_checkpoint(tmp_path / "model", tied=True, shards=1)
    edit_tensor(folder, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(4))
    edit_tensor(folder, "lm_head.weight", torch.zeros(320, 32))
    read_everything(folder)
    edit_tensor(folder, "model.layers.0.self_attn.q_proj.bias", torch.zeros(32))
    with pytest.raises(SourceError, match=r"q_proj\.bias"):
        read_everything(folder)
