"""Adapters that cannot be merged, or not into this checkpoint: each is refused by name, before any weight is read."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alize.errors import AdapterError, SourceNotFound
from alize.models.checkpoint import Checkpoint
from alize.models.read_adapter import merge_adapter
from tests.models.adapters import ATTENTION, CONFIG, TENSORS, edit_settings, edit_tensors, make_adapter
from tests.models.multimodal_checkpoints import multimodal_checkpoint
from tests.tiny import tiny_checkpoint, write_json

LAYER = "base_model.model.model.layers.1."
Q_A, Q_B = (f"{LAYER}self_attn.q_proj.lora_{part}.weight" for part in "AB")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tiny_checkpoint(tmp_path_factory.mktemp("base"))
    return base, make_adapter(base, tmp_path_factory.mktemp("adapter"), target_modules=ATTENTION, r=4)


@pytest.fixture
def adapter(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of a good adapter, to be spoilt."""
    place = tmp_path / "adapter"
    place.mkdir()
    for name in (TENSORS, CONFIG):
        (place / name).write_bytes((made[1] / name).read_bytes())
    return place


def refused(base: Path, adapter: Path, *said: str) -> None:
    with pytest.raises(AdapterError) as caught:
        merge_adapter(Checkpoint.open(base), adapter)
    message = str(caught.value)
    for text in said:
        assert text in message, message
    assert "\n" not in message


def test_a_good_one_is_not_refused(made: tuple[Path, Path], adapter: Path) -> None:
    assert len(merge_adapter(Checkpoint.open(made[0]), adapter).merges) == 12


SETTINGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "DoRA": ({"use_dora": True}, ["use_dora = True", "only plain LoRA"]),
    "a bias of its own": ({"lora_bias": True}, ["lora_bias = True"]),
    "QALoRA": ({"use_qalora": True}, ["use_qalora = True"]),
    "tokens": ({"trainable_token_indices": [1, 2]}, ["trainable_token_indices = [1, 2]"]),
    "layers twice": ({"layer_replication": [[0, 2], [1, 3]]}, ["layer_replication"]),
    "two at once": ({"use_dora": True, "kasa_config": {"beta": 1}}, ["kasa_config", "use_dora"]),
    "of the future": ({"a_new_idea": 3}, ["a_new_idea = 3", "merge it with peft"]),
    "another method": ({"peft_type": "LOHA"}, ["peft_type 'LOHA'", "only LORA"]),
    "no method": ({"peft_type": ...}, ["peft_type None"]),
    "residual base": ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4", "base weights that training changed"]),
    "unknown bias": ({"bias": "some"}, ["bias 'some'"]),
    "rank 0": ({"r": 0}, ["r is 0"]),
    "half a rank": ({"r": 4.5}, ["r is 4.5", "whole number"]),
    "alpha that is no number": ({"lora_alpha": "8"}, ["lora_alpha is '8'"]),
    "a pattern that is no expression": ({"rank_pattern": {"(": 4}}, ["rank_pattern", "no regular expression"]),
    "a pattern that is no object": ({"alpha_pattern": [3]}, ["alpha_pattern is [3]"]),
    "targets that are numbers": ({"target_modules": [1]}, ["target_modules is [1]"]),
    "layers that are words": ({"layers_to_transform": ["a"]}, ["layers_to_transform is ['a']"]),
    "another rank": ({"r": 8}, ["lora_A.weight has shape [4, 32]", "with r = 8 asks for [8, 32]"]),
    "another rank of some": ({"rank_pattern": {"layers.1.self_attn.k_proj": 2}}, ["layers.1.self_attn.k_proj", "[2, 32]"]),
    "less targets than factors": ({"target_modules": ATTENTION[:3]}, ["has factors of model.layers.0.self_attn.o_proj"]),
    "less layers than factors": ({"layers_to_transform": [0, 2]}, ["has factors of model.layers.1.", "does not target"]),
    "more targets than factors": ({"target_modules": [*ATTENTION, "up_proj"]}, ["no factors of model.layers.0.mlp.up_proj"]),
    "targets of another model": ({"target_modules": [*ATTENTION, "qkv_proj"]}, [CONFIG, "targets qkv_proj", "has not"]),
    "parameters of another model": ({"target_parameters": ["mlp.experts.down_proj"]}, ["targets mlp.experts.down_proj"]),
    "a saved module that is no expression": ({"modules_to_save": ["("]}, ["modules_to_save has '('", "no regular expression"]),
    "a layer pattern that is no expression": (
        {"layers_pattern": "(", "layers_to_transform": [0]},
        ["layers_pattern has '('", "no regular expression"],
    ),
    "modules that were not saved": ({"modules_to_save": ["lm_head"]}, ["no tensor of lm_head", "modules_to_save"]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, made: tuple[Path, Path], adapter: Path) -> None:
    changes, said = SETTINGS[name]
    edit_settings(adapter, **changes)
    refused(made[0], adapter, *said)


SPOILT: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], list[str]]] = {
    "no B": (lambda t: t.pop(Q_B), [Q_A, "has no partner"]),
    "a module missing": (lambda t: (t.pop(Q_A), t.pop(Q_B)), ["no factors of model.layers.1.self_attn.q_proj"]),
    "a layer too many": (
        lambda t: t.update({Q_A.replace(".1.", ".7."): t[Q_A], Q_B.replace(".1.", ".7."): t[Q_B]}),
        ["layers.7.self_attn.q_proj", "belongs to nothing", "another model"],
    ),
    "a module of another model": (
        lambda t: t.update({Q_A.replace("q_proj", "qkv"): t.pop(Q_A), Q_B.replace("q_proj", "qkv"): t.pop(Q_B)}),
        ["self_attn.qkv.lora_A.weight", "belongs to nothing"],
    ),
    "a whole tensor too many": (lambda t: t.update({f"{LAYER}mlp.up_proj.weight": t[Q_A]}), ["mlp.up_proj.weight", "nothing"]),
    "a bias": (lambda t: t.update({f"{LAYER}self_attn.q_proj.lora_B.bias": t[Q_A]}), ["lora_B.bias", "nothing"]),
    "a magnitude": (
        lambda t: t.update({f"{LAYER}self_attn.q_proj.lora_magnitude_vector": t[Q_A]}),
        ["lora_magnitude_vector", "nothing"],
    ),
    "factors of a norm": (
        lambda t: t.update({f"{LAYER}input_layernorm.lora_{part}.weight": t[Q_A] for part in "AB"}),
        ["input_layernorm.lora_A.weight", "nothing"],
    ),
    "factors of an embedding for a matrix": (
        lambda t: t.update(
            {f"{LAYER}self_attn.q_proj.lora_embedding_{part}": t.pop(key) for part, key in zip("AB", (Q_A, Q_B), strict=True)}
        ),
        ["q_proj.lora_embedding_A", "nothing"],
    ),
    "a longer factor": (lambda t: t.update({Q_B: torch.zeros(64, 4)}), [Q_B, "[64, 4]", "[32, 4]", "another model"]),
    "integers": (lambda t: t.update({Q_B: torch.zeros(32, 4, dtype=torch.int8)}), [Q_B, "is I8"]),
    "a vocabulary of another size": (
        lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(323, 32)}),
        ["lm_head.weight has shape [323, 32]", "[320, 32]"],
    ),
    "nothing": (lambda t: t.clear(), ["holds no tensor"]),
}


@pytest.mark.parametrize("name", SPOILT)
def test_tensors(name: str, made: tuple[Path, Path], adapter: Path) -> None:
    edit, said = SPOILT[name]
    edit_tensors(adapter, lambda tensors: [edit(tensors)])
    refused(made[0], adapter, *said, str(adapter))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_factor_that_is_not_finite(value: float, made: tuple[Path, Path], adapter: Path) -> None:
    """Found when the adapter is hashed, which a build begins with."""
    edit_tensors(adapter, lambda tensors: tensors[Q_B][3].fill_(value))
    opened = merge_adapter(Checkpoint.open(made[0]), adapter)
    with pytest.raises(AdapterError, match=f"{re.escape(Q_B)} holds NaN or infinite values"):
        opened.sha256()


def test_a_sum_that_does_not_fit(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", dtype="float16")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj"], r=1)
    edit_tensors(adapter, lambda tensors: [tensor.fill_(3e3) for tensor in tensors.values()])
    checkpoint = Checkpoint.open(base)
    merge_adapter(checkpoint, adapter)
    with pytest.raises(AdapterError, match=r"layers\.0\.self_attn\.q_proj\.weight plus what the adapter adds .* in float16"):
        checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize("targets", [{"target_modules": ["lm_head"]}, {"target_modules": ["embed_tokens"]}])
def test_tied_embeddings(targets: dict[str, Any], tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", tied=True)
    adapter = make_adapter(base, tmp_path / "adapter", r=2, **targets)
    refused(base, adapter, f"{targets['target_modules'][0]}.", "ties its embeddings to its head")


def test_experts_of_another_count(tmp_path: Path) -> None:
    four, eight = (tiny_checkpoint(tmp_path / str(count), experts=count, packed=True, layers=1) for count in (4, 8))
    parameters = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], "target_modules": []}
    adapter = make_adapter(four, tmp_path / "adapter", r=2, **parameters)
    refused(eight, adapter, "experts.base_layer.lora_A.weight", "[8, 32]", "gate_up_proj with r = 2", "[16, 32]")
    edit_settings(adapter, target_parameters=["mlp.experts.down_proj"])
    refused(four, adapter, "experts.base_layer.lora_A.weight", "belongs to nothing")
    plain = tiny_checkpoint(tmp_path / "plain", layers=1)
    refused(plain, make_adapter(four, tmp_path / "again", r=2, **parameters), "experts.base_layer.lora_A.weight", "nothing")


def test_the_vision_tower_is_not_built(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    multimodal_checkpoint(folder, "mistral")
    adapter = make_adapter(folder, tmp_path / "adapter", tree=True, target_modules=["q_proj"], r=2)
    refused(folder, adapter, "vision_tower", "left out")


def test_what_is_not_there(made: tuple[Path, Path], adapter: Path, tmp_path: Path) -> None:
    def missing(folder: Path, said: str) -> None:
        with pytest.raises(SourceNotFound, match=said):
            merge_adapter(Checkpoint.open(made[0]), folder)

    missing(tmp_path / "nowhere", "no such folder")
    missing(made[0], f"has no {CONFIG}")
    (adapter / TENSORS).rename(adapter / "adapter_model.bin")
    missing(adapter, r"only adapter_model.bin \(pickle")
    (adapter / "adapter_model.bin").unlink()
    missing(adapter, f"has no {TENSORS}; give")
    (adapter / CONFIG).write_text("{")
    refused(made[0], adapter, "not readable JSON")
    write_json(adapter / CONFIG, [])  # type: ignore[arg-type]
    refused(made[0], adapter, "holds a JSON list")
