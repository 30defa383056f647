from collections.abc import Callable
from pathlib import Path

import pytest

from alize.artifact import (
    Building,
    CaseResult,
    Configuration,
    Manifest,
    ModelInfo,
    Source,
    Target,
    Validation,
)

FILES = {
    "openvino_model.xml": b"<net/>",
    "openvino_model.bin": bytes(range(256)) * 20,
    "tokenizer.json": '{"ᠠ": "ہے 🐫"}'.encode(),
    "extra/golden.safetensors": b"\0" * 7,
    "empty.txt": b"",
}
UNSEALED = {"build-record.json": b'{"seconds": 12.5}'}

Make = Callable[..., Manifest]


def make_manifest() -> Manifest:
    return Manifest(
        alize="0.1.0",
        source=Source(
            "hub",
            "org/modèle",
            "0" * 40,
            "ab" * 32,
            "MistralForCausalLM",
            "mistral",
            {"rms_norm_eps": 1e-05},
            "awq-int4-g128",
            "cd" * 32,
        ),
        model=ModelInfo(2, 4, 2, 8, 32, 100, (16, 0), 64, 1, (2,), 0, 0),
        target=Target(
            "openvino", "cpu", "fp16", {}, {"openvino": "2026.4.1"}, ("fold", "fuse"), {"windows": [16, 0], "fused": True}
        ),
        configurations=(Configuration("default", {"chunk": 128, "paged": False, "hint": "LATENCY"}),),
        validation=Validation(
            level="device-validated",
            verdict="pass",
            left_out=(),
            budget={"seconds": 60.0},
            cases=(CaseResult("W+1", "compile fidelity", True, {"kl_max": 1.23456789e-7, "tokens": 123457}),),
            figures={"floor": {"kl_max": 2e-9}},
        ),
        rebuild="alize build org/modèle --target openvino",
    )


@pytest.fixture
def manifest() -> Manifest:
    return make_manifest()


@pytest.fixture
def make() -> Make:
    """Seals an artifact of FILES and UNSEALED at a path."""

    def make(output: Path, *, overwrite: bool = False, files: dict[str, bytes] = FILES) -> Manifest:
        with Building(output, overwrite=overwrite) as building:
            write(building.folder, files | UNSEALED)
            return building.seal(make_manifest(), unsealed=tuple(UNSEALED))

    return make


@pytest.fixture
def artifact(tmp_path: Path, make: Make) -> Path:
    make(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("ALIZE_STATE_DIR", str(folder))
    return folder


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
