"""What Python's load chooses to run: where something was tuned, and where not every configuration can run; see make_data.py."""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alize.artifact.manifest import read
from alize.artifact.state import DeviceState, DeviceVerdict
from alize.errors import AlizeError
from alize.runtimes import fake
from alize.runtimes import model as loading
from alize.runtimes.model import load
from tests.cpp.manifest_data import error_of

__all__ = ["left_out", "tuned"]

CHOSEN: dict[str, Any] = {"schema": 1, "options": {"chunk": 8, "slack": 24, "text": "ü", "truth": True}, "gain": 1.25}
KERNELS = json.dumps(CHOSEN | {"options": {"chunk": 8, "slack": 24, "kernels": "alize"}})
TEXTS: dict[str, str] = {
    "chosen": json.dumps(CHOSEN),
    "a whole number for the gain": json.dumps(CHOSEN | {"gain": 2}),
    "another schema": json.dumps(CHOSEN | {"schema": 2}),
    "an unknown field": json.dumps(CHOSEN | {"zz": 1}),
    "a missing field": json.dumps({"schema": 1, "options": {}}),
    "an option of another type": json.dumps(CHOSEN | {"options": {"chunk": 1.5}}),
    "a gain in words": json.dumps(CHOSEN | {"gain": "much"}),
    "no object": "[]",
    "no JSON": '{"schema": 1',
    "no UTF-8": "\udcff",
    "what no session can have": json.dumps(CHOSEN | {"options": {"chunk": 9, "slack": 3}}),
}


def tuned(artifact: Path, states: Path) -> Iterator[dict[str, Any]]:
    for name, text in TEXTS.items():
        for configuration in (None, "tuned", "default"):
            yield loaded(artifact, states / f"{name} {configuration}", text, configuration)
    chosen = TEXTS["chosen"]
    for verdict in ("pass", "fail", "skipped"):
        for configuration in (None, "tuned"):
            yield loaded(artifact, states / f"{verdict} {configuration}", chosen, configuration, verdict=verdict)
    yield loaded(artifact, states / "another device", chosen, None, device={"backend": "fake", "device": "another"})
    yield loaded(artifact, states / "nothing", None, "tuned")


def left_out(by_name: dict[str, Path], states: Path) -> Iterator[dict[str, Any]]:
    """Of artifacts whose configurations ask for kernels, which the fake back-end of libalize has not."""
    known = loading.missing
    loading.missing = lambda options: "the fake back-end has no kernels" if options.get("kernels") == "alize" else None
    for name, artifact in by_name.items():
        yield loaded(artifact, states / name, None, None)
        yield loaded(artifact, states / f"{name}, tuned", KERNELS, None)
    loading.missing = known


def loaded(
    artifact: Path,
    states: Path,
    text: str | None,
    configuration: str | None,
    *,
    verdict: str = "",
    device: dict[str, str] | None = None,
) -> dict[str, Any]:
    """The files that a state had before it was loaded from, by their place in it, and what load said and did."""
    os.environ["ALIZE_STATE_DIR"] = str(states)
    state = DeviceState(read(artifact).digest, device or fake.fingerprint("cpu"))
    state.folder.mkdir(parents=True)
    if text is not None:
        (state.folder / "tuned.json").write_bytes(text.encode(errors="surrogateescape"))
    chosen = state.tuned()
    if verdict and chosen is not None:
        state.record_verdict(chosen.name, DeviceVerdict(verdict))  # type: ignore[arg-type] - one of the three
    files = {str(file.relative_to(states)): list(file.read_bytes()) for file in states.rglob("*.json")}
    lines = Lines()
    logging.getLogger("alize").addHandler(lines)
    found: dict[str, Any] = {}
    try:
        with load(artifact, configuration=configuration) as model:
            found = {"loaded": model.configuration.name, **dataclasses.asdict(model.limits)}
    except AlizeError as error:
        found = error_of(error)
    finally:
        logging.getLogger("alize").removeHandler(lines)
    own_words = text in (TEXTS["no JSON"], TEXTS["no UTF-8"])  # the two parsers' about what does not parse
    case = {
        "case": states.name,
        "artifact": str(artifact),
        "files": files,
        "configuration": configuration or "",
        "own_words": own_words,
    }
    return {**case, "states": str(states), "lines": lines.said, **found}


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
