"""alize tune, on the fake back-end with a clock that is told what each configuration takes."""

import json
import logging
from pathlib import Path

import pytest

from alize.artifact import manifest as manifests
from alize.artifact.manifest import Configuration, Manifest
from alize.artifact.state import DeviceState
from alize.errors import NotValidated, UsageError
from alize.runtimes import fake, tuning
from alize.runtimes import model as loading
from alize.runtimes.levers import Lever, fits, levers
from alize.runtimes.model import Model, load
from alize.runtimes.tuning import Workload, forget, tune
from tests.runtimes.artifacts import manifest, seal

CHOICES: list[Lever] = [("chunk", (8, 16, 32)), ("threads", (0, 2))]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIZE_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Larger chunks and two threads are faster: (seconds to the first token, seconds of one)."""
    monkeypatch.setattr(tuning, "levers", lambda _manifest, _device: CHOICES)
    timed(monkeypatch, {16: 1.0, 8: 1.5, 32: 0.5}, {0: 0.02, 2: 0.01})
    seal(tmp_path / "artifact")
    return tmp_path / "artifact"


def timed(monkeypatch: pytest.MonkeyPatch, first: dict[int, float], each: dict[int, float]) -> None:
    def time(_search: object, model: Model, *, seed: int) -> tuple[float, float]:
        options = model.configuration.options
        return first[int(options.get("chunk", 16))], each[int(options.get("threads", 0))]

    monkeypatch.setattr(tuning._Search, "_time", time)


def state(place: Path) -> DeviceState:
    return DeviceState(manifests.read(place).digest, fake.fingerprint("cpu"))


def test_the_fastest_is_kept_and_loaded(place: Path) -> None:
    found = tune(place, workload=Workload(prompt=16, new_tokens=101))
    assert found.configuration.options == {"chunk": 32, "slack": 32, "threads": 2}  # a chunk has to fit in the slack
    assert (found.kept, found.gain) == (True, 2.0)  # (1 + 100 * 0.02) / (0.5 + 100 * 0.01)
    tried = {one.changed: one.timing.speed for one in found.candidates if one.timing is not None}
    assert tried == {"chunk=8": 0.85714, "chunk=32": 1.2, "threads=2": 1.66667}
    with load(place) as model:
        assert model.configuration == found.configuration
        assert (model.limits.chunk, model.limits.slack) == (32, 32)
    with load(place, configuration="tuned") as model:
        assert model.configuration == found.configuration
    with load(place, configuration="default") as model:
        assert model.configuration.options == {"chunk": 16, "slack": 16}


def test_the_workload_decides(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads cost a long prompt more than they spare a short answer."""
    monkeypatch.setattr(tuning, "levers", lambda _manifest, _device: [("threads", (0, 2))])

    def time(_search: object, model: Model, *, seed: int) -> tuple[float, float]:
        return (2.0, 0.01) if model.configuration.options.get("threads") else (1.0, 0.02)

    monkeypatch.setattr(tuning._Search, "_time", time)
    assert not tune(place, workload=Workload(new_tokens=50)).kept
    assert tune(place, workload=Workload(new_tokens=500)).kept


def test_nothing_faster_leaves_what_was_sealed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(place)
    timed(monkeypatch, {16: 1.0, 8: 0.99, 32: 1.1}, {0: 0.02, 2: 0.0199})  # less than the margin
    found = tune(place)
    assert (found.kept, found.configuration.name) == (False, "default")
    assert state(place).tuned() is None
    with load(place) as model:
        assert model.configuration.name == "default"


def test_what_is_wrong_is_refused_however_fast(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fake.FakeRunner.step
    opened: list[int] = []

    def open_engine(folder: Path, given: Manifest, device: str, options: dict[str, int], taps: tuple[str, ...] = ()) -> object:
        opened.append(options.get("threads", 0))
        return right_open(folder, given, device, options, taps)

    def step(runner: fake.FakeRunner, *arguments: object) -> object:
        logits = right(runner, *arguments)  # type: ignore[arg-type]
        if opened[-1] == 2:
            logits[..., 7] += 3
        return logits

    right_open = fake.open
    monkeypatch.setattr(fake, "open", open_engine)
    monkeypatch.setattr(fake.FakeRunner, "step", step)
    found = tune(place)
    assert found.configuration.options == {"chunk": 32, "slack": 32}
    refused = {one.changed: one.refused for one in found.candidates if one.timing is None}
    assert list(refused) == ["threads=2"]
    assert "kl" in refused["threads=2"]


def test_a_choice_that_fails_later_is_not_loaded(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its verdict belongs to its options: other options in the file are proven anew, and a failure is said."""
    name = tune(place).configuration.name
    file = state(place).folder / "tuned.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"options": {"chunk": 4, "slack": 6}}))
    changed = state(place).tuned()
    assert changed is not None and changed.name != name and state(place).verdict(changed.name) is None
    with load(place) as model:
        assert model.configuration == changed
    known = state(place).verdict(changed.name)
    assert known is not None and known.verdict == "pass"  # by a replay
    contents = state(place).folder / "state.json"
    contents.write_text(contents.read_text().replace('"verdict": "pass"', '"verdict": "fail"'))
    with caplog.at_level(logging.WARNING), load(place) as model:
        assert model.configuration.name == "default"
    assert f"`alize tune {place}` chooses again" in caplog.text


def test_a_choice_that_cannot_run_any_more_is_not_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tune(place)
    state(place).record_tuned({"chunk": 8, "slack": 16, "kernels": "alize"}, gain=2.0)
    monkeypatch.setattr(loading, "missing", lambda options: "no compiler" if options.get("kernels") == "alize" else None)
    with caplog.at_level(logging.WARNING), load(place) as model:
        assert model.configuration.name == "default"
    assert "what was chosen cannot run any more: no compiler" in caplog.text


def test_forgetting(place: Path) -> None:
    assert not forget(place)
    tune(place)
    assert forget(place)
    with pytest.raises(UsageError, match=rf"{place} was not tuned on this device: `alize tune {place}` does that"):
        load(place, configuration="tuned")


def test_a_state_that_cannot_be_written(place: Path, own_state: Path) -> None:
    own_state.write_text("a file, no folder")
    found = tune(place)
    assert (found.kept, found.configuration.name) == (False, "tuned")
    assert found.gain > 1


def test_bad_input(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="rounds 0 must be at least 1"):
        Workload(rounds=0)
    seal(tmp_path / "bare", golden=False)
    with pytest.raises(NotValidated, match=r"has no golden\.safetensors to prove a choice with: rebuild with"):
        tune(tmp_path / "bare")
    monkeypatch.setattr(tuning, "levers", levers)
    with pytest.raises(UsageError, match="nothing is to be tuned of fake on cpu"):
        tune(place)


@pytest.mark.parametrize(
    ("weights", "groups"),
    [("int8-channel", (32, 64, 128, 256)), ("int4-g64", (32, 64)), ("mixed-b5-g128-asym", (32, 64, 128)), ("fp32", None)],
)
def test_levers_of_openvino(weights: str, groups: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alize.runtimes.levers.processor_name", lambda: "some cpu avx512_bf16")
    made = manifest(backend="openvino", weights=weights)
    found = dict(levers(made, "cpu"))
    assert found.get("dynamic_quantization_group") == groups
    assert found["inference_precision"] == ("f32", "bf16")
    monkeypatch.setattr("alize.runtimes.levers.processor_name", lambda: "some cpu avx512f")
    assert "inference_precision" not in dict(levers(made, "cpu"))
    assert levers(made, "gpu") == []


def test_an_eight_bit_cache_is_never_shifted() -> None:
    assert fits(Configuration("a", {"attention": "paged", "kv_cache_precision": "u8"}).options)
    assert not fits({"kv_cache_precision": "u8"})
    assert fits({"attention": "stateful", "kv_cache_precision": "f16"})
