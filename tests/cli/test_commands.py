"""build, validate, inspect and demo-model: what they hand to the library, and what they make of its answer."""

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alize.artifact import MANIFEST, read
from alize.engine_options import EngineOptions
from alize.errors import OutputError
from alize.inspect_artifact import describe
from alize.progress import Progress

Alize = Callable[..., Any]
MakeFake = Callable[..., Path]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Puts a function into the place of `module.name`; the list fills with what it is called with."""

    def put(module: str, name: str, does: Callable[..., Any]) -> list[Any]:
        calls: list[Any] = []

        def function(*positional: Any, progress: Any, **options: Any) -> Any:
            calls.append((positional, options))
            return does(progress)

        stub = types.ModuleType(module)
        setattr(stub, name, function)
        monkeypatch.setitem(sys.modules, module, stub)
        return calls

    return put


def test_build_hands_on_its_options(alize: Alize, artifact: Path, stand_in: Any, tmp_path: Path) -> None:
    calls = stand_in("alize.building", "build", lambda _: read(artifact))
    words = ["--target", "onnxruntime", "--weights", "mixed", "--revision", "v0.1", "--validation-budget", "7", "--force"]
    words += ["--group-size", "64", "--asymmetric", "--quantisation-budget", "0.25", "--experts", "apart", "--max-memory", "8GB"]
    words += [
        "--adapter",
        "an/adapter",
        "--calibrate",
        "a.txt",
        "--bits",
        "6",
        "--no-resume",
        "--sm",
        "89",
        "--capacity",
        "64",
        "--batch",
        "2",
    ]
    ran = alize("build", "org/name", "-o", tmp_path / "out", "--device", "gpu", *words)
    assert ran.code == 0
    assert calls == [
        (
            ("org/name",),
            {
                "output": tmp_path / "out",
                "target": "onnxruntime",
                "device": "gpu",
                "weights": "mixed",
                "experts": "apart",
                "revision": "v0.1",
                "adapter": Path("an/adapter"),
                "budget_seconds": 7.0,
                "quantisation_budget": 0.25,
                "group_size": "64",
                "bits": 6.0,
                "asymmetric": True,
                "calibrate": "a.txt",
                "engine": EngineOptions(sm="89", capacity=64, batch=2),
                "force": True,
                "resume": False,
                "max_memory": 8_000_000_000,
            },
        )
    ]


@pytest.mark.parametrize(("source", "name"), [("org/name", "name-openvino"), ("here/", "here-openvino"), (".", "place-openvino")])
def test_build_names_its_output(
    alize: Alize, artifact: Path, stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    calls = stand_in("alize.building", "build", lambda _: read(artifact))
    assert alize("build", source).code == 0
    assert calls[0][1]["output"] == Path(name)
    assert "weights" not in calls[0][1]  # the library's own default holds


def test_build_shows_the_stages_and_the_artifact(alize: Alize, artifact: Path, stand_in: Any) -> None:
    def work(progress: Progress) -> Any:
        progress.stage("export", steps=2)
        progress.advance(2)
        return read(artifact)

    stand_in("alize.building", "build", work)
    ran = alize("build", "s", "-o", artifact)
    assert ran.out.splitlines()[1] == f"digest          {read(artifact).digest}"
    assert ran.err.startswith("alize: export (2 steps) ...\nalize: export: ")
    ran = alize("build", "s", "--json", "--quiet")
    assert ran.json == json.loads((artifact / MANIFEST).read_text())
    assert ran.err == ""


def test_a_partial_verdict_is_5(alize: Alize, make_fake: MakeFake, stand_in: Any, tmp_path: Path) -> None:
    manifest = read(make_fake(tmp_path / "partial", verdict="partial"))
    stand_in("alize.building", "build", lambda _: manifest)
    ran = alize("build", "s", "--json", "--quiet")
    assert (ran.code, ran.json["validation"]["verdict"]) == (5, "partial")
    assert ran.err == "alize: error: the verdict is partial (2W+3): load refuses this artifact, raise --validation-budget\n"


def test_an_existing_output_is_4(alize: Alize, stand_in: Any) -> None:
    def refuse(_: Progress) -> Any:
        raise OutputError("out exists: give --force")

    stand_in("alize.building", "build", refuse)
    assert alize("build", "s").code == 4


@pytest.mark.parametrize(
    ("words", "module"), [(["build", "s"], "alize.building"), (["demo-model", "d"], "alize.models.demo_checkpoint")]
)
def test_a_missing_package_names_the_extra(
    alize: Alize, monkeypatch: pytest.MonkeyPatch, words: list[str], module: str, tmp_path: Path
) -> None:
    class Edge:
        """An install without torch."""

        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == module:
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Edge, *sys.meta_path])
    monkeypatch.chdir(tmp_path)
    ran = alize(*words)
    assert ran.code == 7
    assert "torch is not installed here: pip install 'alize[build" in ran.err


def test_a_missing_module_of_ours_is_a_defect(alize: Alize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "alize.building", None)
    assert alize("build", "s").code == 1


def report(verdict: str, **more: Any) -> dict[str, Any]:
    case = {"name": "W+1", "question": "compile fidelity", "passed": verdict == "pass", "figures": {"kl_max": 1e-7}}
    return {"verdict": verdict, "level": "device-validated", "left_out": [], "cases": [case], "figures": {}} | more


def test_validate_hands_on_its_options(alize: Alize, stand_in: Any) -> None:
    calls = stand_in("alize.validate", "validate_artifact", lambda _: report("pass"))
    ran = alize("validate", "a", "--source", "org/name", "--adapter", "b", "--validation-budget", 3)
    assert ran.code == 0
    assert ran.out == "verdict  pass (device-validated)\n  W+1  compile fidelity  pass  kl_max 1e-07\n"
    assert calls == [((Path("a"),), {"source": "org/name", "adapter": Path("b"), "budget_seconds": 3.0})]
    assert alize("validate", "a", "--json").json == report("pass")


def test_a_failed_validation_is_5(alize: Alize, stand_in: Any) -> None:
    found = ["window of layer 3", "window of layer 4", "rope"]
    stand_in("alize.validate", "validate_artifact", lambda _: report("fail", findings=found))
    ran = alize("validate", "a", "--quiet")
    assert ran.code == 5
    assert "  W+1  compile fidelity  FAIL" in ran.out
    assert ran.out.count("finding: ") == 3
    assert ran.err == (
        "alize: error: the verdict is fail (window of layer 3; window of layer 4; and 1 more): "
        "load refuses this artifact, rebuild it\n"
    )


def test_validate_replays_a_real_artifact(alize: Alize, artifact: Path) -> None:
    ran = alize("validate", artifact, "--json")
    assert (ran.code, ran.json["verdict"]) == (0, "pass")


def test_inspect(alize: Alize, artifact: Path) -> None:
    ran = alize("inspect", artifact)
    assert (ran.code, ran.err) == (0, "")
    manifest = read(artifact)
    for text in (
        manifest.digest,
        "fake on cpu, fp32 weights (fake 1)",
        "2 layers, 4/2 heads of 8, hidden 32",
        "window 8",
        "pass (device-validated)",
        "default (chunk=8)",
        "kl_max 1.25e-07",
        "alize build SOURCE --target fake",
        *(entry.path for entry in manifest.files),
    ):
        assert text in ran.out, text
    assert not any(line != line.rstrip() for line in ran.out.splitlines())
    assert alize("inspect", artifact, "--json").json == dataclasses.asdict(manifest) | json.loads(
        (artifact / MANIFEST).read_text()
    )


def test_inspect_tells_what_the_weights_went_through(tmp_path: Path, artifact: Path) -> None:
    source = dataclasses.replace(read(artifact).source, quantised="awq-int4-g64", adapter="cd" * 32)
    lines = describe(tmp_path, dataclasses.replace(read(artifact), source=source))
    assert any(line.endswith(", quantised as awq-int4-g64, merged with the adapter cdcdcdcdcdcd") for line in lines)


def test_inspect_loads_no_engine_and_checks_what_it_is_asked_to(alize: Alize, artifact: Path) -> None:
    (artifact / "tokenizer.json").write_text("changed")
    assert alize("inspect", artifact).code == 0
    ran = alize("inspect", artifact, "--verify", "full", "--quiet")
    assert (ran.code, ran.out) == (6, "")
    assert "tokenizer.json is not what was sealed" in ran.err
    assert alize("inspect", artifact, "--expect", "0" * 64).code == 6


def test_figures_fit_a_line(alize: Alize, stand_in: Any) -> None:
    many = {"kl_max": 1e-7, "kl_mean": 1e-8, "logit_error_max": 0.01, "positions": 515.0, "top1_agreement": 1.0}
    stand_in("alize.validate", "validate_artifact", lambda _: report("pass", figures={"floor": many, "replay": {"b": 2, "a": 1}}))
    lines = alize("validate", "a", "--quiet").out.splitlines()
    assert lines[-2:] == ["  floor   kl_max 1e-07, logit_error_max 0.01, top1_agreement 1", "  replay  a 1, b 2"]


def test_inspect_names_mixed_windows(alize: Alize, make_fake: MakeFake, tmp_path: Path) -> None:
    assert "window none, 8" in alize("inspect", make_fake(tmp_path / "mixed", windows=(8, 0))).out
    assert "full attention" in alize("inspect", make_fake(tmp_path / "full", windows=(0, 0))).out


def test_demo_model(alize: Alize, stand_in: Any, tmp_path: Path) -> None:
    def work(progress: Callable[[str, int, int], None]) -> None:
        progress("copy", 0, 2_000_000)
        progress("copy", 2_000_000, 2_000_000)

    calls = stand_in("alize.models.demo_checkpoint", "make_demo_checkpoint", work)
    ran = alize("demo-model", tmp_path / "d", "--window", 256)
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'd'}\n")
    assert "alize: copy (2.0 MB) ...\nalize: copy: " in ran.err
    assert calls == [((tmp_path / "d",), {"window": 256, "mixtral": False})]
    answer = alize("demo-model", tmp_path / "d", "--mixtral", "--json").json
    assert answer == {"folder": str(tmp_path / "d"), "window": 0, "mixtral": True}
    assert calls[-1][1] == {"window": 0, "mixtral": True}
