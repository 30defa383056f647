"""Manifests with one thing wrong, and what Python says of them; see make_data.py."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

from alize.artifact.manifest import Manifest
from alize.artifact.strict import canonical
from alize.errors import AlizeError
from tests.runtimes.artifacts import manifest

__all__ = ["error_of", "manifests", "resealed"]


def error_of(error: AlizeError) -> dict[str, Any]:
    return {"name": type(error).__name__, "message": str(error)}


def resealed(fields: dict[str, Any], edit: Callable[[dict[str, Any]], object]) -> str:
    edit(fields)
    fields.pop("digest", None)
    return canonical(fields | {"digest": hashlib.sha256(canonical(fields).encode()).hexdigest()})


def manifests() -> Iterator[dict[str, Any]]:
    whole = json.loads(manifest().with_digest().to_json())
    for path in field_paths(whole):
        for name, edit in mutations(path):
            yield parsed(f"{name} {'.'.join(map(str, path))}", resealed(json.loads(json.dumps(whole)), edit))
    for name in ("../x", "/x", "", "a//b", "a/./b", "manifest.json", "a\\b"):
        yield parsed(f"path {name}", resealed(json.loads(json.dumps(whole)), lambda m, name=name: m.update(unsealed=[name])))
    yield parsed("path twice", resealed(json.loads(json.dumps(whole)), lambda m: m.update(unsealed=["x", "x"])))
    yield parsed(
        "too many digits",
        resealed(json.loads(json.dumps(whole)), lambda m: m["validation"].update(figures={"a": {"b": 1.23456}})),
    )
    file = {"path": "x", "size": 1, "sha256": "ab"}
    yield parsed("short sha256", resealed(json.loads(json.dumps(whole)), lambda m: m.update(files=[file])))


def field_paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    below: list[tuple[str | int, ...]] = []
    if isinstance(value, dict):
        below = [deep for key, member in value.items() for deep in field_paths(member, (*path, key))]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        below = field_paths(value[0], (*path, 0))
    return ([path] if path and isinstance(path[-1], str) else []) + below


def mutations(path: tuple[str | int, ...]) -> Iterator[tuple[str, Callable[[dict[str, Any]], object]]]:
    def at(fields: Any) -> Any:
        for part in path[:-1]:
            fields = fields[part]
        return fields

    yield "without", lambda m: at(m).pop(path[-1])
    yield "unknown beside", lambda m: at(m).update({"zz": 1})
    for value in (None, True, 7, -1.5, "ein 'Text' über alles\n", [], [1, "a"], {}, {"a": {"b": [1.0]}}):
        yield f"{value!r} for", lambda m, value=value: at(m).update({path[-1]: value})


def parsed(name: str, text: str) -> dict[str, Any]:
    try:
        Manifest.from_json(text)
    except AlizeError as error:
        return {"case": name, "text": text, **error_of(error)}
    return {"case": name, "text": text, "name": None, "message": ""}
