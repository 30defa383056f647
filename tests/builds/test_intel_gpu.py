"""Artifacts for an Intel GPU, built where there is none. The GPU itself is played by the CPU plugin."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alize.artifact import Manifest
from alize.building import build
from alize.errors import DeviceUnavailable, NotValidated, UsageError
from alize.runtimes import openvino_runner
from alize.runtimes.model import load
from tests.builds.conftest import BuiltOnce

GPU = {"device": "gpu"}
WEIGHTS = [{"weights": "fp16"}, {"weights": "int8", "group_size": "32"}, {"weights": "int4", "group_size": "32"}]


def play_gpu(monkeypatch: pytest.MonkeyPatch, *, error: float = 0.0) -> list[dict[str, Any]]:
    """Says that there is a GPU; it computes what the CPU does, every second logit off by `error`. Returns each open's options."""
    real, opened = openvino_runner.open, []

    def open_as_gpu(
        folder: Path, manifest: Manifest, device: str, options: Mapping[str, str | int | bool], taps: Sequence[str] = ()
    ) -> Any:
        assert device == "gpu"
        opened.append(dict(options))
        engine = real(folder, manifest, "cpu", {"accuracy": True}, taps)
        step = openvino_runner.OpenVinoRunner.step

        def wrong(*arguments: Any) -> Any:
            logits = step(*arguments)
            logits[..., ::2] += error
            return logits

        monkeypatch.setattr(openvino_runner.OpenVinoRunner, "step", wrong)
        return engine

    monkeypatch.setattr(openvino_runner, "devices", lambda: ["cpu", "gpu"])
    monkeypatch.setattr(
        openvino_runner, "fingerprint", lambda device: {"backend": "openvino", "device": device, "name": "played"}
    )
    monkeypatch.setattr(openvino_runner, "open", open_as_gpu)
    return opened


@pytest.mark.parametrize("model", ["windowed", "mixtral"])
def test_it_is_built_without_one_and_says_so(model: str, built: BuiltOnce) -> None:
    one = built("openvino", model, **GPU)
    validation, target = one.manifest.validation, one.manifest.target
    assert (validation.verdict, validation.level) == ("pass", "graph-validated")
    assert validation.left_out == ("runtime loss on gpu: the golden prompts are replayed at its first load",)
    assert {case.question for case in validation.cases} == {"compile fidelity", "quantisation loss", "runtime loss"}
    assert (target.device, target.weights) == ("gpu", "fp16")
    assert one.manifest.configurations[0].options["inference_precision"] == "f16"
    assert "--device gpu" in one.manifest.rebuild
    if model == "mixtral":
        assert target.options == {"experts": "tiled"}
        assert target.structure["experts"]["gather_matmul_nodes"] == 9


@pytest.mark.parametrize("options", WEIGHTS, ids=lambda options: options["weights"])
def test_mixtral_in_each_precision(options: dict[str, str], built: BuiltOnce) -> None:
    one = built("openvino", "mixtral", quantisation_budget=9.0, **GPU, **options)
    assert one.manifest.validation.verdict == "pass"
    assert one.manifest.target.weights.startswith(options["weights"])


def test_without_a_gpu_it_does_not_load_there(built: BuiltOnce) -> None:
    with pytest.raises(DeviceUnavailable, match="openvino has no device 'gpu' here: use one of cpu"):
        load(built("openvino", "windowed", **GPU).folder)


@pytest.mark.usefixtures("own_state")
def test_the_first_load_on_a_gpu_replays_the_golden_prompts(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built("openvino", "windowed", **GPU).folder
    with monkeypatch.context() as patch:
        opened = play_gpu(patch)
        with load(folder) as model, model.session() as session:
            assert np.isfinite(session.append([[5, 6, 7]])).all()
    assert opened == [{"inference_precision": "f16", "kv_cache_precision": "f16"}]
    with monkeypatch.context() as patch:  # the verdict was recorded: nothing is replayed, so nothing is found
        play_gpu(patch, error=30.0)
        load(folder).close()


@pytest.mark.usefixtures("own_state")
def test_a_gpu_that_computes_something_else_is_refused(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    play_gpu(monkeypatch, error=30.0)
    with pytest.raises(NotValidated, match="does not say on gpu what the reference says"):
        load(built("openvino", "windowed", **GPU).folder)


@pytest.mark.parametrize(
    ("device", "why"), [("npu", "static shapes and symmetric int4"), ("tpu", "is not compiled for it: use cpu")]
)
def test_other_devices_are_refused_by_name(device: str, why: str, built: BuiltOnce, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: .*{why}"):
        build(str(built("openvino").checkpoint), output=tmp_path / "out", target="openvino", device=device)


def test_weights_that_a_gpu_does_not_take_are_refused(built: BuiltOnce, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--weights bf16 does not run on device gpu: use fp16 or int8 or int4"):
        build(str(built("openvino").checkpoint), output=tmp_path / "out", target="openvino", device="gpu", weights="bf16")
