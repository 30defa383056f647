"""What the readers of quantised formats share: how a configuration is held to what is known, and its tensors to it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from alize.errors import CorruptCheckpoint, UnsupportedModel
from alize.models.tensor_info import TensorInfo, View

__all__ = ["FLOATS", "KEY", "Scheme", "refuse"]

KEY = "quantization_config"
FLOATS = ("F32", "F16", "BF16")  # what scales may be stored in
NOT_CONVERTED = ("modules_to_not_convert", "ignored_layers")  # the second is an alias of the first


def refuse(method: str, reason: str) -> UnsupportedModel:
    """The error for a format, or a variant of one, that alize does not read."""
    return UnsupportedModel(f"config.json: {KEY} ({method}): {reason}; give the original model")


@dataclass(frozen=True)
class Scheme:
    """A quantization_config and the tensors that it is about. method: its quant_method."""

    method: str
    config: Mapping[str, Any]
    stored: Mapping[str, TensorInfo]
    view: View

    def only_keys(self, used: Collection[str], ignored: Collection[str]) -> None:
        """Raises UnsupportedModel for keys that are neither used nor known to change nothing; a null says nothing."""
        said = {key for key, value in self.config.items() if value is not None}
        unknown = sorted(said - set(used) - set(ignored) - set(NOT_CONVERTED) - {"quant_method"})
        if unknown:
            keys = ", ".join(f"{key} = {self.config[key]!r}" for key in unknown)
            raise UnsupportedModel(
                f"config.json: {KEY} ({self.method}): unknown key {keys}; alize cannot tell whether it changes the numbers: "
                "remove it if it does not, or give the original model"
            )

    def only(self, key: str, known: Collection[object], *, default: object = None) -> Any:
        """The value of `key`, words in lower case, null as if it were not there; raises UnsupportedModel where it is not one of
        `known`."""
        value = default if self.config.get(key) is None else self.config[key]
        value = value.lower() if isinstance(value, str) else value
        if not any(value == other and type(value) is type(other) for other in known):
            accepted = " or ".join(repr(other) for other in known)
            raise refuse(self.method, f"{key} = {value!r} is not known, only {accepted} is")
        return value

    def group_size(self) -> int:
        """Inputs that share a scale; 0 is all of them."""
        size = self.config.get("group_size", 128)
        if size == -1:
            return 0
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise self.corrupt(f"group_size is {size!r}, not a whole number of at least 1 (or -1: one group)")
        return size

    def corrupt(self, reason: str) -> CorruptCheckpoint:
        """The error for a configuration and tensors that contradict each other."""
        return CorruptCheckpoint(f"config.json: {KEY} ({self.method}): {reason}; fetch config.json and weights again")

    def expect(self, name: str, shape: tuple[int, ...], dtypes: Collection[str], why: str) -> None:
        """Raises CorruptCheckpoint where a stored tensor has another shape or dtype than the configuration asks for."""
        info = self.stored[name]
        if info.shape != shape or info.dtype not in dtypes:
            asked = f"{' or '.join(dtypes)} {list(shape)}"
            raise self.corrupt(f"{info.file.name}: tensor {name} is {info.dtype} {list(info.shape)}, {why} asks for {asked}")

    def check_converted(self, matrices: Collection[str]) -> None:
        """Holds the names of the quantised matrices to the list of modules that are not, and to there being any at all."""
        if not matrices:
            raise refuse(self.method, "no tensor is quantised like that: the configuration belongs to another checkpoint")
        for key in NOT_CONVERTED:
            listed = self.config.get(key) or []
            if not isinstance(listed, list) or not all(isinstance(module, str) for module in listed):
                raise self.corrupt(f"{key} is {listed!r}, not a list of names")
            for name in matrices:
                module = name.removesuffix(".weight")
                named = next((one for one in listed if _is_within(module, one)), None)
                if named is not None:
                    raise self.corrupt(f"{key} names {named}, but tensor {name} is quantised")


def _is_within(module: str, listed: str) -> bool:
    """Whether `listed` is the module, what contains it, or the end of its name."""
    return module == listed or module.startswith(f"{listed}.") or module.endswith(f".{listed}")
