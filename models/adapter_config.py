"""adapter_config.json of a LoRA adapter, as peft writes it: what is merged, and what cannot be."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alize.errors import AdapterError, SourceNotFound

__all__ = ["CONFIG", "AdapterConfig", "ends_with"]

CONFIG = "adapter_config.json"
USED = """peft_type r lora_alpha use_rslora rank_pattern alpha_pattern target_modules target_parameters modules_to_save
    exclude_modules layers_to_transform layers_pattern init_lora_weights bias""".split()  # noqa: SIM905
IGNORED = {
    "auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_version",  # where it came from
    "inference_mode", "lora_dropout", "runtime_config", "loftq_config", "eva_config",  # of training, and of its start
    "megatron_core", "qalora_group_size",  # mean something only beside keys that are refused
    "ensure_weight_tying",  # tied embeddings are refused where it would matter
    "fan_in_fan_out",  # peft sets it to false for the linear layers that these models have
}  # fmt: skip
STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Of init_lora_weights: those that leave the base weights as they are. With the others the factors go with changed ones."""


def ends_with(name: str, endings: Iterable[str]) -> bool:
    """Whether one of `endings` is the name, or its last parts."""
    return any(name == ending or name.endswith(f".{ending}") for ending in endings)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What adapter_config.json says. target_modules: names, an expression, or "all-linear"."""

    rank: int
    alpha: float
    root: bool  # rank-stabilised: the scale is alpha / sqrt(r) (arXiv:2312.03732)
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    target_modules: tuple[str, ...] | str
    target_parameters: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    exclude_modules: tuple[str, ...] | str
    layers: tuple[int, ...]
    layers_pattern: tuple[str, ...]
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Raises SourceNotFound, and AdapterError naming what cannot be merged or makes no sense."""
        if not folder.is_dir():
            raise SourceNotFound(f"{folder}: no such folder; give the folder of a PEFT adapter")
        path = folder / CONFIG
        if not path.is_file():
            raise SourceNotFound(f"{folder} has no {CONFIG}; give the folder of a PEFT adapter")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise AdapterError(f"{path}: not readable JSON ({error}); fetch the adapter again") from error
        if not isinstance(config, dict):
            raise AdapterError(f"{path}: holds a JSON {type(config).__name__}, not an object; fetch the adapter again")
        _refuse(config)
        return cls._parse(config)

    @classmethod
    def _parse(cls, config: Mapping[str, Any]) -> "AdapterConfig":
        return cls(
            rank=int(_positive(config.get("r", 8), "r", whole=True)),
            alpha=_positive(config.get("lora_alpha", 8), "lora_alpha"),
            root=config.get("use_rslora") is True,
            ranks={key: int(_positive(r, f"rank_pattern {key}", whole=True)) for key, r in _pattern(config, "rank_pattern")},
            alphas={key: _positive(alpha, f"alpha_pattern {key}") for key, alpha in _pattern(config, "alpha_pattern")},
            target_modules=_names_or_expression(config, "target_modules"),
            target_parameters=_names(config, "target_parameters"),
            modules_to_save=_expressions(config, "modules_to_save"),
            exclude_modules=_names_or_expression(config, "exclude_modules"),
            layers=_layers(config.get("layers_to_transform")),
            layers_pattern=_expressions(config, "layers_pattern"),
            settings={key: config[key] for key in USED if config.get(key) is not None},
        )

    def rank_of(self, name: str) -> int:
        """The rank of a module or parameter."""
        return self.ranks.get(_key(self.ranks, name), self.rank)

    def scale_of(self, name: str) -> float:
        """What its product is multiplied with."""
        rank = self.rank_of(name)
        return self.alphas.get(_key(self.alphas, name), self.alpha) / (math.sqrt(rank) if self.root else rank)

    def targets(self, module: str) -> bool:
        """Whether the configuration gives this module factors; `module` is its name in the model."""
        if _matches(self.exclude_modules, module):
            return False
        if any(re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in self.modules_to_save):
            return False
        if self.target_modules == "all-linear":
            return module.endswith(("_proj", ".block_sparse_moe.gate", ".w1", ".w2", ".w3"))  # peft leaves the head out
        return _matches(self.target_modules, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if not self.layers or isinstance(self.target_modules, str):
            return True
        patterns = self.layers_pattern or (r"[^.]*",)
        found = next((m for m in (re.match(rf"(?:^|.*?\.){one}\.(\d+)\.", module) for one in patterns) if m), None)
        return found is not None and int(found.group(1)) in self.layers


def _refuse(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{CONFIG}: peft_type {kind!r}; only LORA can be merged: merge it with peft, and give the result")
    other = sorted(key for key, value in config.items() if value and key not in USED and key not in IGNORED)
    if other:
        named = ", ".join(f"{key} = {config[key]!r}" for key in other)
        raise AdapterError(f"{CONFIG}: {named}; only plain LoRA can be merged: merge it with peft, and give the result")
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        raise AdapterError(
            f"{CONFIG}: init_lora_weights {start!r}: its factors go with base weights that training changed at its start; "
            "convert it to LoRA with peft, or set it to true where the checkpoint holds those weights"
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only"):  # these models have no biases to train
        raise AdapterError(f"{CONFIG}: bias {config['bias']!r} is not known; none, all and lora_only are")


def _positive(value: object, name: str, *, whole: bool = False) -> float:
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < math.inf:
        raise AdapterError(f"{CONFIG}: {name} is {value!r}, not a {'whole ' if whole else ''}number above 0")
    return value


def _pattern(config: Mapping[str, Any], key: str) -> Iterable[tuple[str, object]]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{CONFIG}: {key} is {value!r}, not an object")
    for expression in value:
        _compiled(expression, key)
    return value.items()


def _names(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key) or []
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterError(f"{CONFIG}: {key} is {value!r}, not a list of names")
    return tuple(sorted(value))


def _expressions(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Names that are matched as regular expressions, as peft does."""
    return tuple(_compiled(name, key) for name in _names(config, key))


def _names_or_expression(config: Mapping[str, Any], key: str) -> tuple[str, ...] | str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        return _names(config, key)
    return "all-linear" if value.lower() == "all-linear" else _compiled(value, key)


def _compiled(expression: str, key: str) -> str:
    try:
        re.compile(expression)
    except re.error as error:
        raise AdapterError(f"{CONFIG}: {key} has {expression!r}, which is no regular expression ({error})") from error
    return expression


def _layers(value: object) -> tuple[int, ...]:
    layers = [value] if isinstance(value, int) else value or []
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        raise AdapterError(f"{CONFIG}: layers_to_transform is {value!r}, not a list of layers")
    return tuple(layers)


def _matches(wanted: tuple[str, ...] | str, name: str) -> bool:
    return re.fullmatch(wanted, name) is not None if isinstance(wanted, str) else ends_with(name, wanted)


def _key(patterns: Iterable[str], name: str) -> str:
    """The first pattern that the name's end matches, the name itself where there is none."""
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", name)), name)
