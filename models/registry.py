"""The model families, by the `model_type` of config.json."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from alize.errors import UnsupportedModel
from alize.models import ministral, ministral3, mistral, mixtral
from alize.models.checkpoint import Checkpoint, Weight

__all__ = ["FAMILIES", "Family", "family_for", "single_weights", "weights_of"]


@dataclass(frozen=True)
class Family:
    """What a family's file exports: `config.from_dict(config.json)`, `model(config)`, `convert_weights(config, checkpoint)`."""

    model_type: str
    config: type[mistral.Config]
    model: type[mistral.Model]
    convert_weights: Callable[[mistral.Config, Checkpoint], dict[str, Weight]]


FAMILIES: dict[str, Family] = {
    "ministral": Family("ministral", ministral.Config, ministral.Model, ministral.convert_weights),
    "ministral3": Family("ministral3", ministral3.Config, ministral3.Model, ministral3.convert_weights),
    "mistral": Family("mistral", mistral.Config, mistral.Model, mistral.convert_weights),
    "mixtral": Family("mixtral", mixtral.Config, mixtral.Model, mixtral.convert_weights),
}


def family_for(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises UnsupportedModel naming a model_type that is missing or not in FAMILIES."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModel(f"config.json: model_type {model_type!r} is not one of {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]


def weights_of(checkpoint: Checkpoint) -> dict[str, Weight]:
    """Which tensors make each parameter of the checkpoint's model, from the headers alone.

    Raises UnsupportedModel and CorruptCheckpoint for what its family cannot express: call it before any work is done.
    """
    family = family_for(checkpoint.config)
    return family.convert_weights(family.config.from_dict(checkpoint.config), checkpoint)


def single_weights(checkpoint: Checkpoint) -> dict[str, Weight]:
    """The same, with every matrix of a stack of experts under a name of its own."""
    return {part: one for name, weight in weights_of(checkpoint).items() for part, one in weight.apart(name).items()}
