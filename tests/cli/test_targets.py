import importlib.metadata
import io
from collections.abc import Callable
from typing import Any

import pytest

from alize import targets
from alize.errors import BackendUnavailable
from alize.runtimes.registry import BACKENDS, Backend

Alize = Callable[..., Any]

REQUIRES = [
    "numpy>=2.0",
    'torch>=2.9; extra == "build"',
    'onnx-ir>=0.1.16; extra == "build"',
    'openvino<2027,>=2026.4; extra == "openvino"',
    'onnxruntime>=1.23; extra == "onnxruntime"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What pip has installed; every back-end has the devices of the fake one and is there when its package is."""
    packages = {"torch": "2.13.0", "onnx-ir": "1.1", "openvino": "2026.4.1", "onnxruntime": "1.31.1"}

    def version(name: str) -> str:
        if name not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[name]

    class Module:
        def devices(self) -> list[str]:
            return ["cpu", "gpu"]

    def module(name: str, *, backends: dict[str, Backend]) -> Module:
        if name not in packages:
            raise BackendUnavailable(f"back-end {name} cannot be used here: pip install 'alize[{backends[name].extra}]'")
        return Module()

    monkeypatch.setattr(importlib.metadata, "requires", lambda _: REQUIRES)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr("alize.runtimes.registry.backend_module", module)
    return packages


def by_name(report: dict[str, Any]) -> dict[str, Any]:
    return {target["name"]: target for target in report["targets"]}


def test_every_real_backend_is_listed(alize: Alize) -> None:
    ran = alize("targets", "--json")
    assert ran.code == 0
    real = {name for name, backend in BACKENDS.items() if backend.extra}
    assert set(by_name(ran.json)) == real
    assert all(name in alize("targets").out for name in by_name(ran.json))


def test_a_machine_with_everything(installed: dict[str, str]) -> None:
    report = targets.survey()
    assert report["build"] == {"ready": True, "packages": {"torch": "2.13.0", "onnx-ir": "1.1"}, "remedy": None}
    assert by_name(report)["openvino"] == {
        "name": "openvino",
        "build": True,
        "run": True,
        "devices": ["cpu", "gpu"],
        "versions": {"openvino": "2026.4.1"},
        "missing": [],
        "remedy": None,
    }


def test_an_edge_machine_runs_but_does_not_build(installed: dict[str, str]) -> None:
    for name in ("torch", "onnx-ir", "onnxruntime"):
        del installed[name]
    report = targets.survey()
    assert report["build"]["remedy"] == "pip install 'alize[build]'"
    found = by_name(report)
    assert (found["openvino"]["build"], found["openvino"]["run"]) == (False, True)
    assert found["openvino"]["missing"] == ["torch", "onnx-ir"]
    assert found["openvino"]["remedy"] == "pip install 'alize[build,openvino]'"
    assert (found["onnxruntime"]["build"], found["onnxruntime"]["run"]) == (False, False)


def test_the_table_names_the_mending_commands(installed: dict[str, str]) -> None:
    del installed["onnxruntime"]
    out = io.StringIO()
    targets.show(targets.survey(), out)
    assert "openvino      yes    yes  cpu, gpu  openvino 2026.4.1" in out.getvalue()
    assert "onnxruntime   no     no" in out.getvalue()
    assert "pip install 'alize[onnxruntime]'" in out.getvalue()
    assert "building uses: torch 2.13.0, onnx-ir 1.1\n" in out.getvalue()


def test_a_driver_that_breaks_is_a_finding(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> object:
        raise OSError("libze_loader.so: cannot open shared object file")

    monkeypatch.setattr("alize.runtimes.registry.backend_module", crash)
    found = by_name(targets.survey())["openvino"]
    assert (found["run"], found["missing"]) == (False, ["OSError: libze_loader.so: cannot open shared object file"])
