"""JSON to frozen dataclasses and back, with no leniency: an unknown, missing or wrongly typed field is an error that names it."""

import dataclasses
import json
import types
import typing
from typing import Any, TypeVar

from alize.errors import ArtifactError

__all__ = ["canonical", "decode", "parse_json"]

T = TypeVar("T")


def canonical(value: object) -> str:
    """The one text that a JSON value has here: sorted keys, 2-space indent, UTF-8 unescaped, one newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def parse_json(text: str) -> object:
    """Parses strict JSON: no NaN or Infinity, no key twice. Raises ArtifactError."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"not valid JSON ({error})") from error


def decode(kind: type[T], value: object, where: str = "") -> T:
    """Turns parsed JSON into `kind`, a dataclass or a type that its annotations use. Raises ArtifactError naming the field."""
    return typing.cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: object, where: str) -> object:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if origin is dict:
        members = _expect(dict, value, where)
        return {key: _decode(arguments[1], member, f"{where}.{key}") for key, member in members.items()}
    if origin is typing.Literal:
        if value not in arguments or type(value) is not type(arguments[0]):
            raise ArtifactError(f"field {where} is {value!r}; it can be {' or '.join(map(repr, arguments))}")
        return value
    if origin is types.UnionType:
        return _decode_union(arguments, value, where)
    if kind is float and type(value) is int:
        return float(value)
    return _expect(kind, value, where)


def _decode_dataclass(kind: type, value: object, where: str) -> object:
    members = _expect(dict, value, where)
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for name in sorted(members.keys() - names):
        raise ArtifactError(f"unknown field {prefix}{name}")
    for name in sorted(names - members.keys()):
        raise ArtifactError(f"missing field {prefix}{name}")
    return kind(**{name: _decode(hints[name], members[name], f"{prefix}{name}") for name in names})


def _decode_union(arguments: tuple[Any, ...], value: object, where: str) -> object:
    if type(value) in arguments:  # exact, so that True is not taken for an int
        return value
    names = " or ".join("null" if argument is type(None) else argument.__name__ for argument in arguments)
    raise ArtifactError(f"field {where} should be {names}, not {_describe(value)}")


def _expect(kind: Any, value: object, where: str) -> Any:
    if type(value) is not kind:
        raise ArtifactError(f"field {where or 'at the top'} should be {kind.__name__}, not {_describe(value)}")
    return value


def _describe(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError(f"a field is there twice: {sorted(key for key, _ in pairs)}")
    return members


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")
