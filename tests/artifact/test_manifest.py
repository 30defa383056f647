import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alize.artifact import MANIFEST, SCHEMA, CaseResult, Manifest, read
from alize.artifact.strict import canonical
from alize.errors import ArtifactError, TamperedArtifact, UnknownSchema, UsageError


def text_of(manifest: Manifest, edit: Callable[[dict[str, Any]], object] = lambda _: None) -> str:
    """The manifest's text after `edit`, with a digest that agrees with it: what is refused then is the edit itself."""
    fields = json.loads(manifest.to_json())
    edit(fields)
    fields.pop("digest", None)
    return canonical(fields | {"digest": hashlib.sha256(canonical(fields).encode()).hexdigest()})


def test_reads_back_what_was_written(manifest: Manifest) -> None:
    sealed = manifest.with_digest()
    assert Manifest.from_json(sealed.to_json()) == sealed
    assert Manifest.from_json(text_of(manifest)) == sealed


def test_digest_is_that_of_the_text_without_its_line(manifest: Manifest) -> None:
    """The rule of docs/artifact.md for a reader without a JSON writer."""
    sealed = manifest.with_digest()
    lines = sealed.to_json().splitlines(keepends=True)
    rest = "".join(line for line in lines if not line.startswith('  "digest": '))
    assert len(rest.splitlines()) == len(lines) - 1
    assert hashlib.sha256(rest.encode()).hexdigest() == sealed.digest


def test_figures_are_rounded_and_counts_are_not() -> None:
    case = CaseResult("W", "compile fidelity", True, {"kl": 1.23456789e-7, "tokens": 1234567})
    assert case.figures == {"kl": 1.235e-7, "tokens": 1234567.0}


def test_a_figure_that_is_not_finite_is_named(manifest: Manifest) -> None:
    validation = replace(manifest.validation, figures={"floor": {"kl_max": float("nan")}})
    with pytest.raises(ArtifactError, match=r"not finite: floor\.kl_max = nan"):
        replace(manifest, validation=validation).to_json()


def field_paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every field that has a declared type: not the inside of free-form values."""
    if path and path[-1] in ("config", "structure", "versions", "options", "budget", "figures"):
        return [path]
    below: list[tuple[str | int, ...]] = []
    if isinstance(value, dict):
        below = [deep for key, member in value.items() for deep in field_paths(member, (*path, key))]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        below = field_paths(value[0], (*path, 0))
    return ([path] if path and isinstance(path[-1], str) else []) + below


def parent_of(fields: Any, path: tuple[str | int, ...]) -> Any:
    for step in path[:-1]:
        fields = fields[step]
    return fields


def test_every_missing_field_is_named(artifact: Path) -> None:
    manifest = read(artifact)
    paths = field_paths(json.loads(manifest.to_json()))
    assert len(paths) > 45
    for path in paths:
        if path in [("digest",), ("schema",)]:  # their own tests follow
            continue
        text = text_of(manifest, lambda fields, path=path: parent_of(fields, path).pop(path[-1]))
        with pytest.raises(ArtifactError, match=f"missing field .*{path[-1]}$"):
            Manifest.from_json(text)


def test_every_field_of_a_wrong_type_is_named(artifact: Path) -> None:
    manifest = read(artifact)
    for path in field_paths(json.loads(manifest.to_json())):
        if path == ("digest",):
            continue
        for wrong in (True, 1.5, [[]], "x" * 100, {"a": {"b": []}}):
            before = parent_of(json.loads(manifest.to_json()), path)[path[-1]]
            if type(wrong) is type(before) or (isinstance(before, dict) and isinstance(wrong, dict)):
                continue
            if before is None and isinstance(wrong, str):
                continue
            text = text_of(manifest, lambda fields, path=path, wrong=wrong: parent_of(fields, path).update({path[-1]: wrong}))
            with pytest.raises(ArtifactError, match=str(path[-1])):
                Manifest.from_json(text)


@pytest.mark.parametrize(
    "where", [(), ("source",), ("model",), ("target",), ("validation",), ("files", 0), ("validation", "cases", 0)]
)
def test_an_unknown_field_is_named(artifact: Path, where: tuple[str | int, ...]) -> None:
    text = text_of(read(artifact), lambda fields: parent_of(fields, (*where, "")).update(surprise=1))
    with pytest.raises(ArtifactError, match=r"unknown field .*surprise"):
        Manifest.from_json(text)


def test_a_newer_schema_is_refused_before_anything_else(manifest: Manifest) -> None:
    with pytest.raises(UnknownSchema, match=r"schema 3 .*pip install --upgrade alize"):
        Manifest.from_json(json.dumps({"schema": SCHEMA + 1, "everything": "else is new"}))
    with pytest.raises(UnknownSchema, match="build the artifact again"):
        Manifest.from_json(json.dumps({"schema": SCHEMA - 1}))
    with pytest.raises(ArtifactError, match="missing field schema"):
        Manifest.from_json(text_of(manifest, lambda fields: fields.pop("schema")))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("[]", "should be dict"),
        ('{"schema": 1, "schema": 1}', "twice"),
        ('{"schema": NaN}', "NaN"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_text_that_is_no_manifest(text: str, match: str) -> None:
    with pytest.raises(ArtifactError, match=match):
        Manifest.from_json(text)


def test_a_wrong_digest(manifest: Manifest) -> None:
    with pytest.raises(TamperedArtifact, match="rebuild with `alize build org/modèle"):
        Manifest.from_json(replace(manifest, digest="0" * 64).to_json())


def test_same_meaning_in_other_bytes_is_refused(manifest: Manifest) -> None:
    text = manifest.with_digest().to_json()
    for other in (text + "\n", text.replace(": ", ":  ", 1), text.replace("è", "\\u00e8"), text.replace("60.0", "60")):
        assert json.loads(other) == json.loads(text)
        with pytest.raises(TamperedArtifact, match="canonical"):
            Manifest.from_json(other)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\\b", "", ".", "a/", MANIFEST])
def test_a_path_that_leaves_the_artifact(artifact: Path, path: str) -> None:
    for field in ("files", "unsealed"):

        def edit(fields: dict[str, Any], field: str = field) -> None:
            if field == "files":
                fields["files"][0]["path"] = path
            else:
                fields["unsealed"] = [path]

        with pytest.raises(ArtifactError, match="plain path"):
            Manifest.from_json(text_of(read(artifact), edit))


def test_a_path_named_twice_and_a_bad_hash(artifact: Path) -> None:
    manifest = read(artifact)
    with pytest.raises(ArtifactError, match="twice"):
        Manifest.from_json(text_of(manifest, lambda fields: fields["files"].append(fields["files"][0])))
    with pytest.raises(ArtifactError, match="sha256"):
        Manifest.from_json(text_of(manifest, lambda fields: fields["files"][0].update(sha256="AB" * 32)))


def test_pin(artifact: Path) -> None:
    digest = read(artifact).digest
    assert read(artifact, expect=digest) == read(artifact, expect=f"sha256:{digest.upper()}")
    with pytest.raises(TamperedArtifact, match="not the pinned 0000"):
        read(artifact, expect="0" * 64)
    with pytest.raises(UsageError, match="is not a digest"):
        read(artifact, expect=digest[:12])


def test_no_artifact_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"has no manifest.json.*alize build"):
        read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="no such folder"):
        read(tmp_path / "file")
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest.json: not valid JSON .*: restore the file, or build"):
        read(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(tmp_path)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_canonical_text_has_one_form(value: object) -> None:
    text = canonical(value)
    assert canonical(json.loads(text)) == text
