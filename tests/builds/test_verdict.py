"""What a build remembers, what another device has to prove, and what `alize validate` says of a sealed artifact."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alize.artifact import Building, DeviceState, DeviceVerdict, Manifest, read
from alize.building import build
from alize.compilers import compiler_for
from alize.drafting import draft_manifest
from alize.errors import ArtifactError, NotValidated, SourceError, TamperedArtifact
from alize.models.checkpoint import Checkpoint
from alize.progress import SilentProgress
from alize.runtimes import model as runtime
from alize.runtimes.golden import GOLDEN, read_golden, write_golden
from alize.runtimes.model import load
from alize.runtimes.onnxruntime_runner import OnnxRuntimeRunner
from alize.runtimes.openvino_paged import PagedRunner
from alize.runtimes.openvino_runner import OpenVinoRunner
from alize.runtimes.registry import backend_module
from alize.validate import validate_artifact
from alize.validate.judge import Budget
from alize.validate.run import validate_folder
from tests.builds.conftest import Alize, Built, BuiltOnce
from tests.tiny import RUN_HERE, tiny_checkpoint
from tests.validate.tampering import lower, window_of

each_target = pytest.mark.parametrize("target", RUN_HERE)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose golden prompts are replayed."""
    seen: list[Path] = []
    original = runtime._replay

    def counted(place: Any, model: Any) -> Any:
        seen.append(place.folder)
        return original(place, model)

    monkeypatch.setattr(runtime, "_replay", counted)
    return seen


def elsewhere(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """From here on this machine is another one."""
    module = backend_module(target)
    here = module.fingerprint("cpu")
    monkeypatch.setattr(module, "fingerprint", lambda device: here | {"name": "another processor"})


def spoil(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """From here on this engine computes something else."""
    kinds: dict[str, list[Any]] = {"openvino": [OpenVinoRunner, PagedRunner], "onnxruntime": [OnnxRuntimeRunner]}
    for kind in kinds[target]:
        monkeypatch.setattr(kind, "step", spoilt(kind.step))


def spoilt(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*arguments: Any) -> Any:
        logits = right(*arguments)
        logits[..., 7] += 3
        return logits

    return wrong


def resealed(folder: Path, output: Path, change: Callable[[Path], None]) -> Manifest:
    """The same artifact, sealed anew after a change to its files: what a faulty build would have made of it."""
    with Building(output) as building:
        shutil.copytree(folder, building.folder, dirs_exist_ok=True)
        (building.folder / "manifest.json").unlink()
        change(building.folder)
        return building.seal(dataclasses.replace(read(folder), files=(), unsealed=(), digest=""))


def turn_golden(folder: Path) -> None:
    """Other reference log-probabilities: those of the token before."""
    budget, found = read_golden(folder / GOLDEN)
    cases = [dataclasses.replace(case, log_probs=np.roll(case.log_probs, 1, axis=1)) for case in found]
    write_golden(folder / GOLDEN, cases, budget)


@each_target
def test_the_first_load_where_it_was_built_replays_nothing(target: str, built: BuiltOnce, replays: list[Path]) -> None:
    one = built(target)
    state = DeviceState(one.manifest.digest, backend_module(target).fingerprint("cpu"))
    assert state.verdict("default") == DeviceVerdict("pass")
    load(one.folder).close()
    assert replays == []


@each_target
def test_another_device_replays_once(
    target: str, built: BuiltOnce, replays: list[Path], monkeypatch: pytest.MonkeyPatch, own_state: Path
) -> None:
    one = built(target)
    elsewhere(monkeypatch, target)
    load(one.folder).close()
    load(one.folder).close()
    assert replays == [one.folder]
    state = DeviceState(one.manifest.digest, backend_module(target).fingerprint("cpu"))
    known = state.verdict("default")
    assert known is not None
    assert known.verdict == "pass"
    assert known.figures["kl"] < 1e-3


def test_a_partial_verdict_is_not_remembered(built: BuiltOnce) -> None:
    one = built("onnxruntime", budget_seconds=0.0)
    assert DeviceState(one.manifest.digest, backend_module("onnxruntime").fingerprint("cpu")).verdict("default") is None


@each_target
def test_an_engine_that_computes_something_else_is_refused(
    target: str, built: BuiltOnce, monkeypatch: pytest.MonkeyPatch, own_state: Path
) -> None:
    one = built(target)
    shutil.rmtree(own_state, ignore_errors=True)  # where this test is the first to ask for it, the build's verdict is here
    spoil(monkeypatch, target)
    with pytest.raises(NotValidated) as refused:
        load(one.folder)
    assert "does not say on cpu what the reference says (" in str(refused.value)
    assert f"`alize validate {one.folder}` repeats this" in str(refused.value)
    assert f"`{one.manifest.rebuild}` rebuilds" in str(refused.value)
    with pytest.raises(NotValidated, match=f"failed its replay on cpu before: `alize validate {one.folder}` repeats it"):
        load(one.folder)


@each_target
def test_other_golden_log_probabilities_are_refused(target: str, built: BuiltOnce, tmp_path: Path) -> None:
    resealed(built(target).folder, tmp_path / "turned", turn_golden)
    with pytest.raises(NotValidated, match=r"does not say on cpu what the reference says \(kl .* is over 0\.1; max_log_prob"):
        load(tmp_path / "turned")


@each_target
def test_another_window_in_the_graph_is_refused(target: str, built: BuiltOnce, tmp_path: Path) -> None:
    """The engine's files of a model with a window one wider, all else being right: only the replay can tell, or the pass that
    makes attention paged."""
    wider = tiny_checkpoint(tmp_path / "wider", window=13, tokenizer=True)
    build(str(wider), output=tmp_path / "other", target=target)
    names = {"openvino": ["openvino_model.xml", "openvino_model.bin"], "onnxruntime": ["model.onnx", "model.onnx.data"]}[target]

    def mix(folder: Path) -> None:
        for name in names:
            shutil.copyfile(tmp_path / "other" / name, folder / name)

    resealed(built(target).folder, tmp_path / "mixed", mix)
    error, said = {
        "openvino": (ArtifactError, r"would run with the windows \[13, .*\], the model's are \[12, .*\]: build it again"),
        "onnxruntime": (NotValidated, "does not say on cpu what the reference says"),
    }[target]
    with pytest.raises(error, match=said):
        load(tmp_path / "mixed")


def test_an_artifact_without_golden_prompts_is_refused_elsewhere(built: BuiltOnce, tmp_path: Path) -> None:
    resealed(built("onnxruntime").folder, tmp_path / "bare", lambda folder: (folder / GOLDEN).unlink())
    with pytest.raises(NotValidated, match=r"has no golden.safetensors to replay on cpu: rebuild with `alize build "):
        load(tmp_path / "bare")


@each_target
def test_validate_without_a_source_replays(target: str, built: BuiltOnce, replays: list[Path], own_state: Path) -> None:
    one = built(target)
    report = validate_artifact(one.folder, budget_seconds=60)
    assert (report["verdict"], report["level"], report["left_out"], report["cases"]) == ("pass", "golden replay", [], [])
    assert report["figures"]["golden replay"]["positions"] == 7
    assert replays == [one.folder]
    load(one.folder).close()
    assert replays == [one.folder]


@each_target
def test_validate_with_the_source_measures_what_build_measured(target: str, built: BuiltOnce, own_state: Path) -> None:
    one = built(target)
    before = snapshot(one)
    report = validate_artifact(one.folder, source=str(one.checkpoint), budget_seconds=60)
    assert report.pop("findings") == []
    assert json.loads(json.dumps(report)) == json.loads(json.dumps(dataclasses.asdict(one.manifest.validation)))
    state = DeviceState(one.manifest.digest, backend_module(target).fingerprint("cpu"))
    assert state.verdict("default") == DeviceVerdict("pass")
    assert snapshot(one) == before


def snapshot(one: Built) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in one.folder.iterdir()}


@each_target
def test_validate_finds_what_is_wrong_and_load_then_refuses(
    target: str, built: BuiltOnce, monkeypatch: pytest.MonkeyPatch, own_state: Path
) -> None:
    one = built(target)
    spoil(monkeypatch, target)
    report = validate_artifact(one.folder, source=str(one.checkpoint), budget_seconds=60)
    assert report["verdict"] == "fail"
    assert "the difference is in the cache, the head or the mask" in report["findings"][0]
    assert "compile fidelity, one append: 27 of 27 positions are off by more than" in report["findings"][1]
    monkeypatch.undo()
    monkeypatch.setenv("ALIZE_STATE_DIR", str(own_state))
    with pytest.raises(NotValidated, match="failed its replay on cpu before"):
        load(one.folder)
    assert validate_artifact(one.folder, budget_seconds=60)["verdict"] == "pass"
    load(one.folder).close()


def test_validate_keeps_to_the_budget_of_the_build(built: BuiltOnce) -> None:
    one = built("onnxruntime")
    assert (
        validate_artifact(one.folder, source=str(one.checkpoint), budget_seconds=60)["budget"] == one.manifest.validation.budget
    )


def test_validate_without_time_is_partial_and_remembers_nothing(built: BuiltOnce, own_state: Path) -> None:
    one = built("onnxruntime")
    report = validate_artifact(one.folder, source=str(one.checkpoint), budget_seconds=0)
    assert report["verdict"] == "partial"
    assert DeviceState(one.manifest.digest, backend_module("onnxruntime").fingerprint("cpu")).verdict("default") is None


def test_another_source_is_refused_by_its_hash(built: BuiltOnce, tmp_path: Path) -> None:
    one = built("onnxruntime")
    other = tiny_checkpoint(tmp_path / "other", window=12, tokenizer=True, seed=1)
    with pytest.raises(SourceError) as refused:
        validate_artifact(one.folder, source=str(other), budget_seconds=60)
    assert f"{other} is not the checkpoint that {one.folder} was built from: its sha256 is " in str(refused.value)
    assert f"the manifest says {one.manifest.source.sha256[:12]}..." in str(refused.value)


@pytest.mark.parametrize("with_source", [False, True])
def test_validate_looks_at_every_byte_first(with_source: bool, built: BuiltOnce, copied: Callable[[Built], Path]) -> None:
    one = built("onnxruntime")
    folder = copied(one)
    data = bytearray((folder / "tokenizer.json").read_bytes())
    data[100] ^= 1
    (folder / "tokenizer.json").write_bytes(data)
    with pytest.raises(TamperedArtifact, match=r"tokenizer\.json is not what was sealed"):
        validate_artifact(folder, source=str(one.checkpoint) if with_source else None, budget_seconds=60)


def test_exit_codes_of_validate(
    built: BuiltOnce, alize: Alize, monkeypatch: pytest.MonkeyPatch, own_state: Path, tmp_path: Path
) -> None:
    one = built("onnxruntime")
    assert alize("validate", one.folder, "-q").code == 0
    assert alize("validate", one.folder, "--source", one.checkpoint, "-q").code == 0
    partial = alize("validate", one.folder, "--source", one.checkpoint, "--validation-budget", "0", "-q")
    assert (partial.code, partial.err.count("\n")) == (5, 1)
    assert "raise --validation-budget" in partial.err
    other = tiny_checkpoint(tmp_path / "other", seed=1)
    assert alize("validate", one.folder, "--source", other, "-q").code == 3
    spoil(monkeypatch, "onnxruntime")
    for words in ((), ("--source", one.checkpoint)):
        failed = alize("validate", one.folder, *words, "-q")
        assert (failed.code, failed.err.count("\n")) == (5, 1)
        assert failed.err.startswith("alize: error: the verdict is fail (")


@each_target
def test_a_window_that_should_not_be_there_is_located(target: str, built: BuiltOnce, tmp_path: Path) -> None:
    """Beyond the first few positions, where only a model without any window is asked that far."""
    checkpoint = Checkpoint.open(built(target, "full").checkpoint)
    assert str(lower(checkpoint, target, tmp_path / "out", window_of(lambda _: 20))).startswith("layer 0: ")
    compiler = compiler_for(target)
    draft = draft_manifest(checkpoint, compiler, device="cpu", weights="fp32")
    progress = SilentProgress()
    outcome = validate_folder(
        tmp_path / "out", draft, checkpoint, compiler, budget=Budget(), budget_seconds=60, progress=progress
    )
    assert outcome.evidence.findings[0].startswith("layer 0, attention, from position 20 on: the rotary embedding or the mask")
