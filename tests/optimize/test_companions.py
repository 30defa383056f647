"""Files beside the graphs that other programs open an artifact with. `ci/peers` opens it with those programs themselves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alize.models.checkpoint import Checkpoint
from alize.optimize import companions_onnxruntime, companions_openvino
from alize.optimize.companions_onnxruntime import genai_config
from tests.tiny import tiny_checkpoint

CONFIG: dict[str, Any] = {
    "model_type": "mistral", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_genai_config() -> None:
    found = genai_config(CONFIG)
    model, decoder = found["model"], found["model"]["decoder"]
    assert (model["type"], model["context_length"], model["vocab_size"]) == ("mistral", 512, 320)
    assert decoder["filename"] == "model.onnx"
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    assert [decoder[name] for name in sizes] == [6, 32, 4, 3, 2]
    assert decoder["inputs"]["past_key_names"] == "past_key_values.%d.key"
    assert decoder["outputs"]["present_value_names"] == "present.%d.value"
    assert found["search"] == {"do_sample": False, "max_length": 512, "past_present_share_buffer": True, "num_beams": 1}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({}, (1, 2, 2)),
        ({"eos_token_id": [2, 7]}, (1, [2, 7], 2)),
        ({"pad_token_id": 0}, (1, 2, 0)),
        ({"bos_token_id": None, "eos_token_id": None}, (None, [], None)),
    ],
)
def test_tokens_of_genai_config(tokens: dict[str, Any], expected: tuple[Any, Any, Any]) -> None:
    model = genai_config(CONFIG | tokens)["model"]
    assert tuple(model.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")) == expected


def test_genai_config_is_a_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "tiny", layers=1))
    companions_onnxruntime.write(checkpoint, tmp_path)
    text = (tmp_path / "genai_config.json").read_text(encoding="utf-8")
    assert json.loads(text) == genai_config(checkpoint.config)
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_openvino_tokenizers(tmp_path: Path) -> None:
    """They say what the tokenizer says, and the same bytes each time."""
    import openvino
    import openvino_tokenizers  # noqa: F401 - registers the operators
    from tokenizers import Tokenizer

    folder = tiny_checkpoint(tmp_path / "tiny", layers=1, tokenizer=True)
    checkpoint = Checkpoint.open(folder)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        companions_openvino.write(checkpoint, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == [f"openvino_{kind}.{end}" for kind in ("detokenizer", "tokenizer") for end in ("bin", "xml")]
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file
    core = openvino.Core()
    encoder, decoder = (
        core.compile_model(tmp_path / "first" / f"openvino_{kind}.xml", "CPU") for kind in ("tokenizer", "detokenizer")
    )
    text = "a trade wind"
    ids = encoder([text])["input_ids"]
    assert ids[0].tolist() == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert decoder(ids[:, 1:].astype(np.int64))["string_output"].tolist() == [text]


def test_without_a_tokenizer_there_are_none(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "tiny", layers=1))
    (tmp_path / "out").mkdir()
    companions_openvino.write(checkpoint, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
