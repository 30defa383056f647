"""Multimodal checkpoints: the text model in one is read as a checkpoint of its own; all else in it is left alone.

Two layouts are read: the published one (`language_model.model.*`, `language_model.lm_head.*`) and what transformers 5 saves
(`model.language_model.*`, `lm_head.*`). Vision tower and projector are known by name; any other tensor stays what it is, and
is refused as unexpected by the family that the text model belongs to.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models.config import refuse_unknown

__all__ = ["multimodal_architecture", "text_config", "text_tensors"]

Info = TypeVar("Info")

ARCHITECTURES = {"mistral3": "Mistral3ForConditionalGeneration"}  # by model_type
TEXT_ARCHITECTURES = {"mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM"}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
USED = ("model_type", "architectures", "text_config", "tie_word_embeddings", *TOKENS)
VISION = (
    "vision_config", "image_token_index", "image_token_id", "projector_hidden_act", "vision_feature_layer",
    "multimodal_projector_bias", "spatial_merge_size",
)  # fmt: skip
SUB_CONFIGS = ("text_config", "vision_config", "audio_config")
HEAD = "lm_head.weight"
RENAMED = {"language_model.model.": "model.", "language_model.lm_head.": "lm_head.", "model.language_model.": "model."}
LEFT_OUT = tuple(f"{base}{part}." for base in ("", "model.") for part in ("vision_tower", "multi_modal_projector"))


def multimodal_architecture(config: Mapping[str, Any]) -> str | None:
    """The architecture of a multimodal config.json, None where it describes a text model. Raises UnsupportedModel."""
    model_type = config.get("model_type")
    parts = [key for key in SUB_CONFIGS if key in config]
    if model_type not in ARCHITECTURES:
        if parts:
            raise UnsupportedModel(
                f"config.json: model_type {model_type!r} with {', '.join(parts)} is a multimodal model that is not known; "
                f"the text model of {', '.join(ARCHITECTURES)} only can be taken"
            )
        return None
    architecture = ARCHITECTURES[model_type]
    if config.get("architectures") not in (None, [], [architecture]):
        raise UnsupportedModel(f"config.json: architectures {config['architectures']!r}; only {architecture} can be compiled")
    return architecture


def text_tensors(tensors: Mapping[str, Info]) -> dict[str, Info]:
    """The text model's tensors under the names of its own family. Raises CorruptCheckpoint where two have one name."""
    taken: dict[str, Info] = {}
    for stored, info in tensors.items():
        if stored.startswith(LEFT_OUT):
            continue
        prefix = next((prefix for prefix in RENAMED if stored.startswith(prefix)), None)
        name = stored if prefix is None else RENAMED[prefix] + stored.removeprefix(prefix)
        if name in taken:
            raise CorruptCheckpoint(f"tensor {stored} is there in both layouts of a multimodal checkpoint; fetch it again")
        taken[name] = info
    return taken


def text_config(config: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that the text model would have by itself. tensors: what `text_tensors` gives.

    Whether embeddings are tied is what the tensors say, as transformers 5 decides it: the flag of the multimodal config is true
    by default, also for checkpoints that hold a head of their own. Raises UnsupportedModel, CorruptCheckpoint.
    """
    refuse_unknown(config, (*USED, *VISION))
    text = config.get("text_config")
    if not isinstance(text, dict):
        raise CorruptCheckpoint(f"config.json: text_config is {text!r}, not an object; fetch the file again")
    model_type = text.get("model_type", "mistral")
    if model_type not in TEXT_ARCHITECTURES:
        known = " or ".join(TEXT_ARCHITECTURES)
        raise UnsupportedModel(f"config.json: text_config has model_type {model_type!r}; only {known} can be taken")
    said_tied = True in (config.get("tie_word_embeddings", True), text.get("tie_word_embeddings"))
    return {
        **{key: config[key] for key in TOKENS if key in config},
        **text,
        "model_type": model_type,
        "architectures": [TEXT_ARCHITECTURES[model_type]],
        "tie_word_embeddings": said_tied and HEAD not in tensors,
    }
