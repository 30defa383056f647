"""load: what it refuses, what it records, and what it says."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest

from alize.artifact import manifest as manifests
from alize.artifact.state import DeviceState, DeviceVerdict
from alize.errors import (
    ArtifactError,
    BackendUnavailable,
    DeviceUnavailable,
    NotValidated,
    SessionClosed,
    TamperedArtifact,
    UnknownSchema,
    UsageError,
)
from alize.runtimes import fake, golden
from alize.runtimes.fake import FakeEngine, FakeRunner
from alize.runtimes.generate import GenerationOptions, generate
from alize.runtimes.model import load, replay
from alize.runtimes.registry import BACKENDS, Backend
from tests.runtimes.artifacts import seal

WRONG = (5, 4)  # windows of a golden file that the model disagrees with


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIZE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "artifact"


def verdict(place: Path, configuration: str = "default") -> str | None:
    known = DeviceState(manifests.read(place).digest, fake.fingerprint("cpu")).verdict(configuration)
    return None if known is None else known.verdict


def count_replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def counted(*given: Any) -> Any:
        calls.append(1)
        return golden.measure(*given)

    monkeypatch.setattr("alize.runtimes.model.measure", counted)
    return calls


def test_a_right_artifact_runs(place: Path) -> None:
    sealed = seal(place)
    with load(place, expect=sealed.digest) as model:
        assert model.manifest == sealed
        assert (model.device, model.configuration.name, model.limits.chunk) == ("cpu", "default", 16)
        tokens = model.tokenizer.encode("a")
        with model.session() as session:
            assert len(list(generate(session, [tokens % 61], GenerationOptions(max_new_tokens=3)))) == 3
        assert model.session(batch=4).batch == 4


def test_the_replay_runs_once_a_device_and_configuration(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(place)
    calls = count_replays(monkeypatch)
    assert verdict(place) is None
    for expected in (1, 1):
        load(place).close()
        assert (verdict(place), len(calls)) == ("pass", expected)
    assert load(place, configuration="small").limits.chunk == 4
    assert (verdict(place, "small"), len(calls)) == ("pass", 2)
    monkeypatch.setattr(fake, "fingerprint", lambda device: {"backend": "fake", "device": device, "driver": "other"})
    load(place).close()
    assert len(calls) == 3


def test_a_wrong_device_is_refused_then_and_later(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(place, windows=WRONG)
    closed: list[int] = []
    monkeypatch.setattr(FakeEngine, "close", lambda self: closed.append(1))
    calls = count_replays(monkeypatch)
    with pytest.raises(NotValidated, match=r"max_log_prob_error .* is over .*`alize validate .*artifact` .* `alize build SOURCE"):
        load(place)
    assert closed, "the engine of a refused artifact stays open"
    assert verdict(place) == "fail"
    with pytest.raises(NotValidated, match="failed its replay on cpu before: `alize validate"):
        load(place)
    assert len(calls) == 1


def test_replay_says_and_records_without_refusing(place: Path, tmp_path: Path) -> None:
    seal(place, windows=WRONG)
    assert not replay(place).passed
    assert verdict(place) == "fail"
    seal(tmp_path / "right")
    found = replay(tmp_path / "right", configuration="small")
    assert found.passed
    assert found.figures["positions"] == 9
    assert (verdict(tmp_path / "right", "small"), verdict(tmp_path / "right")) == ("pass", None)


def test_replay_mends_a_recorded_failure(place: Path) -> None:
    sealed = seal(place)
    state = DeviceState(sealed.digest, fake.fingerprint("cpu"))
    state.record_verdict("default", DeviceVerdict("fail"))
    with pytest.raises(NotValidated):
        load(place)
    assert replay(place).passed
    load(place).close()


@pytest.mark.parametrize("found", ["fail", "partial"])
def test_a_verdict_that_is_no_pass_is_refused(place: Path, found: str) -> None:
    seal(place, verdict=found, left_out=("2W+3",))
    with pytest.raises(NotValidated, match=rf"verdict '{found}', not 'pass', left out: 2W\+3: rebuild with `alize build SOURCE"):
        load(place)


def test_no_configuration_that_passed(place: Path) -> None:
    seal(place, configurations=())
    with pytest.raises(NotValidated, match="no runtime configuration with a passing verdict"):
        load(place)


def test_no_golden_file_cannot_be_replayed(place: Path) -> None:
    seal(place, golden=False)
    with pytest.raises(NotValidated, match=r"no golden.safetensors to replay"):
        load(place)


def test_an_engine_that_fails_in_the_replay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(place)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of everything")

    monkeypatch.setattr(FakeRunner, "step", fail)
    with pytest.raises(NotValidated, match=r"cannot run on cpu \(out of everything\): `alize validate"):
        load(place)
    assert verdict(place) is None, "a failure to run is no verdict"


@pytest.mark.parametrize("name", ["tokenizer.json", "golden.safetensors", "manifest.json"])
def test_a_changed_byte_is_refused(place: Path, name: str) -> None:
    seal(place)
    load(place).close()
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=name):  # TamperedArtifact, or a field that the change made unknown
        load(place)


def test_full_verification_hashes_whatever_is_recorded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(place)
    load(place).close()
    seen: list[bool] = []
    monkeypatch.setattr("alize.runtimes.model.verify_files", lambda *_, full, **__: seen.append(full))
    load(place).close()
    load(place, verify="full").close()
    load(place, unsafe_skip_validation=True).close()
    assert seen == [False, True, False]
    with pytest.raises(UsageError, match="verify 'never'"):
        load(place, verify="never")  # type: ignore[arg-type]


def test_another_artifact_than_the_pinned_one(place: Path) -> None:
    seal(place)
    with pytest.raises(TamperedArtifact, match="not the pinned"):
        load(place, expect="0" * 64)


def test_a_newer_schema(place: Path) -> None:
    sealed = seal(place)
    (place / "manifest.json").write_text(dataclasses.replace(sealed, schema=manifests.SCHEMA + 1).with_digest().to_json())
    with pytest.raises(UnknownSchema, match="upgrade"):
        load(place)


def test_unknown_configuration(place: Path) -> None:
    seal(place)
    with pytest.raises(UsageError, match="no configuration 'fast': use one of default, small"):
        load(place, configuration="fast")


def test_unknown_backend(place: Path) -> None:
    seal(place, backend="abacus")
    with pytest.raises(BackendUnavailable, match="no back-end 'abacus' in this alize, which has fake, onnxruntime, openvino"):
        load(place)


def test_a_backend_that_is_not_installed_names_its_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(place, backend="openvino")
    monkeypatch.setattr(fake, "available", lambda: "No module named 'openvino'")
    backends = {"openvino": Backend(name="openvino", extra="openvino", module="alize.runtimes.fake")}
    with pytest.raises(BackendUnavailable, match=r"No module named 'openvino'\): pip install 'alize\[openvino\]'"):
        load(place, backends=backends)


def test_a_device_that_is_not_there(place: Path) -> None:
    seal(place)
    with pytest.raises(DeviceUnavailable, match="fake has no device 'npu' here: use one of cpu"):
        load(place, device="npu")
    seal(place.with_name("other"), device="gpu")
    with pytest.raises(DeviceUnavailable, match="no device 'gpu'"):
        load(place.with_name("other"))
    load(place.with_name("other"), device="cpu").close()


def test_skipping_validation_is_loud_and_recorded(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    seal(place, windows=WRONG, verdict="fail")
    for _ in range(2):
        caplog.clear()
        load(place, unsafe_skip_validation=True).close()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "WITHOUT VALIDATION" in caplog.text
    assert verdict(place) == "skipped"


def test_skipping_is_no_pass_later_and_takes_none_away(place: Path, tmp_path: Path) -> None:
    seal(place, windows=WRONG)
    load(place, unsafe_skip_validation=True).close()
    with pytest.raises(NotValidated):
        load(place)
    seal(tmp_path / "right")
    load(tmp_path / "right").close()
    load(tmp_path / "right", unsafe_skip_validation=True).close()
    assert verdict(tmp_path / "right") == "pass"


def test_skipping_validation_is_not_skipping_integrity(place: Path) -> None:
    seal(place)
    (place / "tokenizer.json").write_text("{}")
    with pytest.raises(TamperedArtifact):
        load(place, unsafe_skip_validation=True)


def test_closing_a_model_closes_its_sessions(place: Path) -> None:
    seal(place)
    model = load(place)
    session = model.session()
    model.close()
    model.close()
    with pytest.raises(SessionClosed):
        session.append([[1]])
    with pytest.raises(SessionClosed, match="load it again"):
        model.session()


def test_a_batch_of_none(place: Path) -> None:
    seal(place)
    with load(place) as model, pytest.raises(UsageError, match="batch 0"):
        model.session(batch=0)


def test_every_backend_of_the_registry_names_what_it_is() -> None:
    for name, backend in BACKENDS.items():
        assert backend.name == name
        assert backend.module.startswith("alize.runtimes.")
