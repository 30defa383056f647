"""Artifacts of tiny checkpoints, each built once for all tests of a run, and the command line run in this process."""

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alize import cli
from alize.artifact import Manifest
from alize.building import build
from tests.tiny import tiny_checkpoint

WINDOW = 12

MODELS: dict[str, dict[str, Any]] = {
    "windowed": {"window": WINDOW},
    "full": {"window": 0},
    "bfloat16": {"window": WINDOW, "dtype": "bfloat16", "tied": True},
    "float16": {"window": WINDOW, "dtype": "float16"},
    "mixtral": {"window": WINDOW, "experts": 4, "hidden_size": 64, "intermediate_size": 96},
    "tied": {"window": 0, "tied": True, "hidden_size": 64, "intermediate_size": 96},
    "mixed": {"family": "ministral", "window": WINDOW, "pattern": (0, 1)},
}


@dataclass(frozen=True)
class Built:
    """An artifact (for reading only) and the checkpoint that it was built from."""

    folder: Path
    manifest: Manifest
    checkpoint: Path


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


BuiltOnce = Callable[..., Built]
Alize = Callable[..., Ran]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltOnce:
    """built(target, model="windowed", **options of `build`): the same call builds once."""
    root = tmp_path_factory.mktemp("built")

    @functools.cache
    def checkpoint(model: str) -> Path:
        return tiny_checkpoint(root / f"checkpoint-{model}", tokenizer=True, **MODELS[model])

    @functools.cache
    def make(target: str, model: str, options: tuple[tuple[str, Any], ...]) -> Built:
        folder = root / "artifacts" / "-".join([model, target, *(f"{key}-{value}" for key, value in options)])
        manifest = build(str(checkpoint(model)), output=folder, target=target, **dict(options))
        return Built(folder, manifest, checkpoint(model))

    return lambda target, model="windowed", **options: make(target, model, tuple(sorted(options.items())))


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Built], Path]:
    """A copy of an artifact, to be spoilt."""
    return lambda one: shutil.copytree(one.folder, tmp_path / "copy" / one.folder.name)


@pytest.fixture
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder that knows no artifact."""
    folder = tmp_path_factory.mktemp("own-state")
    monkeypatch.setenv("ALIZE_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def alize(capsys: pytest.CaptureFixture[str]) -> Alize:
    """Runs a command line in this process."""

    def run(*words: str | Path) -> Ran:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run
