"""The text model of a multimodal checkpoint, in both layouts, against transformers' own Mistral3ForConditionalGeneration."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.models.registry import weights_of
from tests.models.multimodal_checkpoints import TEXT, TEXTS, WEIGHTS, multimodal_checkpoint
from tests.models.oracle import TOLERANCE
from tests.tiny import edit_config

ARCHITECTURES = {"mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM"}


def edit_text_config(folder: Path, **changes: Any) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"] | changes
    edit_config(folder, text_config={key: value for key, value in text.items() if value is not ...})


@pytest.mark.parametrize("published", [True, False], ids=["published", "transformers-5"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("text", TEXTS)
def test_logits_of_the_text_model(tmp_path: Path, text: str, tied: bool, published: bool) -> None:
    model = multimodal_checkpoint(tmp_path, text, tied=tied, published=published)
    stored = set(load_file(tmp_path / WEIGHTS))
    layer = "language_model.model.layers.0." if published else "model.language_model.layers.0."
    assert layer + "mlp.up_proj.weight" in stored and any("vision_tower" in name for name in stored)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.multimodal == "Mistral3ForConditionalGeneration"
    assert checkpoint.config["architectures"] == [ARCHITECTURES[text]]
    assert checkpoint.config["tie_word_embeddings"] is tied
    assert checkpoint.tensors.keys() == weights_of(checkpoint).keys()
    row = np.random.default_rng(0).integers(11, 320, 30)  # 10 stands for an image
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(row)[None]).logits[0].numpy()
    (found,) = Reference(checkpoint).run([row]).logits
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_text_checkpoint_is_not_multimodal(tmp_path: Path) -> None:
    multimodal_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(Checkpoint.open(tmp_path).config))
    assert Checkpoint.open(tmp_path).multimodal is None  # its tensors keep their names, and would be refused


def test_a_head_of_its_own_is_used_whatever_the_flags_say(tmp_path: Path) -> None:
    """As transformers 5 does: Mistral3Config's flag is true by default, also for published checkpoints with a head."""
    multimodal_checkpoint(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=...)
    edit_text_config(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" in weights_of(Checkpoint.open(tmp_path))


def test_without_a_head_some_flag_has_to_say_tied(tmp_path: Path) -> None:
    multimodal_checkpoint(tmp_path, tied=True)
    edit_config(tmp_path, tie_word_embeddings=...)
    weights_of(Checkpoint.open(tmp_path))
    edit_config(tmp_path, tie_word_embeddings=False)
    edit_text_config(tmp_path, tie_word_embeddings=True)
    weights_of(Checkpoint.open(tmp_path))
    edit_text_config(tmp_path, tie_word_embeddings=...)
    with pytest.raises(CorruptCheckpoint, match=r"tensor lm_head\.weight is missing"):
        weights_of(Checkpoint.open(tmp_path))


def test_identity_is_that_of_the_text_model(tmp_path: Path) -> None:
    multimodal_checkpoint(tmp_path)
    before = Checkpoint.open(tmp_path).sha256()
    tensors = {name: tensor.clone() for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file({name: -tensor if "vision" in name else tensor for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    assert Checkpoint.open(tmp_path).sha256() == before
    save_file({name: -tensor if "lm_head" in name else tensor for name, tensor in tensors.items()}, tmp_path / WEIGHTS)
    assert Checkpoint.open(tmp_path).sha256() != before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "llava"}, "model_type 'llava' with text_config, vision_config is a multimodal model that is not known"),
        ({"model_type": "voxtral", "audio_config": {}}, "'voxtral' with text_config, vision_config, audio_config"),
        ({"model_type": "mistral"}, "model_type 'mistral' with text_config"),
        ({"architectures": ["Mistral3ForSequenceClassification"]}, "only Mistral3ForConditionalGeneration"),
        ({"text_config": TEXT | {"model_type": "qwen2"}}, "text_config has model_type 'qwen2'; only mistral or ministral3"),
        ({"early_fusion": True}, "unknown key early_fusion = True"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    ],
)
def test_refused_by_name(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    multimodal_checkpoint(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UnsupportedModel) as error:
        Checkpoint.open(tmp_path)
    assert named in str(error.value)


def test_text_config_has_to_be_there(tmp_path: Path) -> None:
    multimodal_checkpoint(tmp_path)
    edit_config(tmp_path, text_config=None)
    with pytest.raises(CorruptCheckpoint, match="text_config is None"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("audio_tower.weight", "unexpected tensor audio_tower.weight"),
        ("language_model.model.layers.9.mlp.up_proj.weight", r"unexpected tensor model\.layers\.9\.mlp"),
        ("model.language_model.norm.weight", r"tensor model\.language_model\.norm\.weight is there in both layouts"),
    ],
)
def test_tensors_that_belong_to_nothing_known(name: str, message: str, tmp_path: Path) -> None:
    multimodal_checkpoint(tmp_path)
    tensors = {name: tensor.clone() for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors | {name: torch.ones(16)}, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match=message):
        weights_of(Checkpoint.open(tmp_path))
