"""Artifacts for NVIDIA GPUs, built and run where there is none: the graph is proven for real, TensorRT itself is played.

ci/tensorrt-rtx builds real plans; ci/gpu runs them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alize import engine_options
from alize.artifact import Manifest
from alize.building import build
from alize.engine_options import EngineOptions, check_gpu
from alize.errors import ArtifactError, BackendUnavailable, DeviceUnavailable, LoweringFailed, NotValidated, UsageError
from alize.nvidia import PACKAGES, parse_sms
from alize.optimize import lower_tensorrt, static_cache
from alize.runtimes import tensorrt_engine
from alize.runtimes.model import load
from tests.builds.conftest import WINDOW
from tests.builds.played_tensorrt import HostMemory, plan_text, play_gpu, played_build
from tests.tiny import tiny_checkpoint

__all__ = ["played_build"]

MODELS: dict[str, dict[str, Any]] = {
    "windowed": {"window": WINDOW},
    "full": {"window": 0},
    "mixed": {"family": "ministral", "window": WINDOW, "pattern": (0, 1), "hidden_size": 144, "intermediate_size": 160},
    "mixtral": {"window": WINDOW, "experts": 4, "hidden_size": 64, "intermediate_size": 96},
}
WEIGHTS: dict[str, dict[str, Any]] = {  # a precision each: a build is what these tests take time for
    "windowed": {"weights": "fp16"},
    "full": {"weights": "bf16"},  # which no CPU runs as it is
    "mixed": {"weights": "int8"},
    "mixtral": {"weights": "int4", "group_size": "32"},
}

pytestmark = pytest.mark.usefixtures("played_build", "own_state")


_made: dict[str, tuple[Path, Manifest]] = {}


def make(
    root: pytest.TempPathFactory, model: str = "windowed", *, sm: str | None = "89", **options: Any
) -> tuple[Path, Manifest]:
    folder = root.mktemp("made")
    checkpoint = tiny_checkpoint(folder / "checkpoint", head_size=16, layers=2, tokenizer=True, **MODELS[model])
    engine = EngineOptions(sm=sm, capacity=options.pop("capacity", None), batch=options.pop("batch", None))
    options = {"quantisation_budget": 9.0} | WEIGHTS[model] | options
    return folder / "made", build(str(checkpoint), output=folder / "made", target="tensorrt-rtx", engine=engine, **options)


def made(
    root: pytest.TempPathFactory, model: str = "windowed", *, sm: str | None = "89", **options: Any
) -> tuple[Path, Manifest]:
    """An artifact, for reading only: the same call builds once."""
    key = f"{model} {sm} {sorted(options.items())}"
    if key not in _made:
        _made[key] = make(root, model, sm=sm, **options)
    return _made[key]


@pytest.mark.parametrize("model", MODELS)
def test_the_lowered_graph_is_proven_and_no_more_is_said(
    model: str, tmp_path_factory: pytest.TempPathFactory, played_build: list[Any]
) -> None:
    _, manifest = made(tmp_path_factory, model)
    validation, target = manifest.validation, manifest.target
    assert (validation.verdict, validation.level) == ("pass", "graph-validated")
    assert validation.left_out == ("runtime loss on gpu: the golden prompts are replayed at its first load",)
    assert [sm for sm, _ in played_build] == [89]
    assert {"engine.sm89.plan", "golden.safetensors", "graph.onnx"} <= {file.path for file in manifest.files}
    assert target.options["sm"] == "89"
    assert "--sm 89" in manifest.rebuild
    assert target.weights.startswith(WEIGHTS[model]["weights"])
    if model == "mixtral":
        assert target.structure["experts"]["prefill"] == "dense: all experts"


def test_a_wrong_window_in_the_graph_is_found(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    right = static_cache._mask
    monkeypatch.setattr(static_cache, "_mask", lambda write, lengths, places, window: right(write, lengths, places, window + 1))
    with pytest.raises(Exception, match="does not say what PyTorch says"):
        make(tmp_path_factory)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (plan_text(2, without="_gemv_mha_v1"), "layer 0, decode: 0 fused attention kernels in the plan, not one"),
        (plan_text(2, without="_gemm_mha_v2"), "layer 0, prefill: 0 fused attention kernels in the plan, not one"),
        (plan_text(2, unbounded=True), "layer 0, decode: _gemv_mha_v1 reads every key, hidden or not"),
        (b"no text at all", "lists no kernels"),
        (plan_text(2) + bytes(90_000_000), "some are stored twice or unpacked"),
    ],
)
def test_a_plan_without_its_kernels_is_refused(
    text: bytes, said: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, manifest = made(tmp_path_factory)
    shutil.copy(folder / lower_tensorrt.GRAPH_FILE, tmp_path)
    (tmp_path / f"{lower_tensorrt.GRAPH_FILE}.data").touch()
    (tmp_path / "engine.sm89.plan").write_bytes(text)
    with pytest.raises(LoweringFailed, match=said):
        lower_tensorrt.check_structure(tmp_path, manifest.model, manifest.target.options)


def test_a_build_looks_into_its_plans(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_tensorrt, "build_plan", lambda package, graph, plan, sm, profiles: plan.write_bytes(b"no text"))
    with pytest.raises(LoweringFailed, match="lists no kernels"):
        make(tmp_path_factory)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sm": None}, "needs --sm, the compute capabilities to build for: 75, 80, 86, 89, 120, 121"),
        ({"sm": "90"}, "--sm 90 is unknown to tensorrt-rtx, which has 75, .* use --target tensorrt on a machine with such a GPU"),
        ({"sm": "ampere"}, "--sm ampere must be numbers with commas between them"),
        ({"sm": "75", "weights": "bf16"}, "--sm 75 has no bfloat16"),
        ({"capacity": 64}, "--capacity 64: every layer has a window"),
        ({"batch": 0}, "--batch 0 must be at least 1"),
        ({"device": "cpu"}, "is not compiled for it .its engines are for NVIDIA GPUs"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], said: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UsageError, match=said):
        made(tmp_path_factory, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"capacity": 513}, "--capacity 513 must be at least 1 and at most 512, the model's positions"),
        ({"batch": 10**8}, "takes .* GB of caches, and no GPU has more than 288"),
    ],
)
def test_a_capacity_beyond_the_model_or_any_memory_is_refused(
    options: dict[str, Any], said: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(UsageError, match=said):
        made(tmp_path_factory, "full", **options)


def test_asymmetric_integers_are_refused_by_the_lint(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(LoweringFailed, match=r"DequantizeLinear .*zero points, which fail: leave out --asymmetric"):
        made(tmp_path_factory, weights="int8", asymmetric=True)


@pytest.mark.parametrize("model", ["windowed", "mixed", "mixtral"])
def test_a_session_on_the_device_says_what_the_reference_says(
    model: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made(tmp_path_factory, model)
    memory = play_gpu(monkeypatch, folder)
    with load(folder) as loaded:
        tokens = np.random.default_rng(0).integers(3, 250, (2, 40))
        with loaded.session(2) as pair, loaded.session() as one:
            whole = pair.append(tokens, lengths=[40, 25], keep=1)
            alone = one.append(tokens[1:, :25])
            np.testing.assert_allclose(whole[1], alone[0], atol=0.05)
            for token in range(5):  # captured at the first, launched from then on
                again, single = pair.append(np.full((2, 1), 7 + token)), one.append([[7 + token]])
                np.testing.assert_allclose(again[1], single[0], atol=0.05)
        assert memory.launched >= 8
    assert memory.held == {}


def test_caches_are_shifted_on_the_device(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = made(tmp_path_factory)
    play_gpu(monkeypatch, folder)
    tokens = np.random.default_rng(1).integers(3, 250, (1, 1300))  # W-1+slack is 576: it is shifted three times
    with load(folder) as loaded, loaded.session() as long, loaded.session() as short:
        assert loaded.limits.capacity == 576
        found = [long.append(tokens[:, start : start + 100])[0, 0] for start in range(0, 1300, 100)][-1]
        expected = short.append(tokens[:, -400:])  # relative positions alone matter, and four windows of them
        np.testing.assert_allclose(found, expected[0, 0], atol=0.1)


def test_an_engine_that_computes_something_else_is_refused(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = made(tmp_path_factory)
    with monkeypatch.context() as patch:
        play_gpu(patch, folder, error=30.0)
        with pytest.raises(NotValidated, match="does not say on gpu what the reference says"):
            load(folder)
    play_gpu(monkeypatch, folder)
    with pytest.raises(NotValidated, match="failed its replay on gpu before"):
        load(folder)


def test_what_does_not_run_here_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, manifest = made(tmp_path_factory)
    with pytest.raises(ArtifactError, match=r"has engines for SM 89, this GPU is SM 80: rebuild with `.*--sm 80,89"):
        tensorrt_engine.pick_plan(folder, manifest, 80)
    with pytest.raises(ArtifactError, match=r"was built by tensorrt-rtx 1.7.1.116, 1.8.0 is here: install that version"):
        tensorrt_engine.check_version(PACKAGES["tensorrt-rtx"], manifest, "1.8.0")


def test_a_truncated_plan_is_named(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = made(tmp_path_factory)
    play_gpu(monkeypatch, folder, truncated=True)
    with pytest.raises(ArtifactError, match=r"engine.sm89.plan cannot be opened .*plan is truncated.*rebuild with `alize build"):
        load(folder)


def test_a_batch_beyond_the_engines_is_refused(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = made(tmp_path_factory)
    play_gpu(monkeypatch, folder)
    with load(folder) as loaded, pytest.raises(UsageError, match=r"a session of 5 rows is more than the 4 .*--batch 5"):
        loaded.session(5)


def test_a_session_that_does_not_fit_leaves_nothing_behind(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, manifest = made(tmp_path_factory)
    memory = play_gpu(monkeypatch, folder)
    caches = 2 * manifest.model.layers + 1  # and what windows are moved by way of
    with load(folder) as loaded:
        allocate, before = memory.allocate, set(memory.held)

        def refuse(size: int, stream: int) -> int:
            if len(memory.held) == len(before) + caches:  # the inputs' place comes behind the caches
                raise ArtifactError("do not fit on the GPU")
            return allocate(size, stream)

        monkeypatch.setattr(memory, "allocate", refuse)
        with pytest.raises(ArtifactError, match="do not fit"):
            loaded.session()
        assert (set(memory.held), memory.streams) == (before, 0)


def test_one_gpu_is_compiled_for_where_it_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES["tensorrt"]
    with pytest.raises(UsageError, match=r"--sm 80,89: tensorrt compiles for the GPU in the machine: give its SM, one"):
        parse_sms(package, "80,89", "fp16")
    assert parse_sms(package, "90", "fp16") == (90,)
    with pytest.raises(BackendUnavailable, match=r"and there is none to be used .*use --target tensorrt-rtx"):
        check_gpu(package, "90")
    monkeypatch.setattr(engine_options, "Cuda", HostMemory)
    check_gpu(package, "89")
    check_gpu(PACKAGES["tensorrt-rtx"], "80,120")
    with pytest.raises(UsageError, match=r"--sm 90: tensorrt compiles for the GPU in the machine, which is SM 89: build on one"):
        check_gpu(package, "90")


def test_compiled_kernels_are_kept_for_the_next_load(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    own_state: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, _ = made(tmp_path_factory)
    given: list[bytes] = []
    play_gpu(monkeypatch, folder, kernels=given)
    for _ in range(2):
        load(folder).close()
    assert given == [b"kernel "]
    (cache,) = own_state.rglob("runtime.cache")
    cache.with_suffix(".writing").mkdir()  # nothing can be written there
    load(folder).close()
    assert "kernels are compiled again at every load; set ALIZE_STATE_DIR" in caplog.text


def test_without_a_driver_it_does_not_load(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = made(tmp_path_factory)
    play_gpu(monkeypatch, folder)
    monkeypatch.setattr(tensorrt_engine.Cuda, "problem", staticmethod(lambda: "cudaErrorInsufficientDriver"))
    with pytest.raises(DeviceUnavailable, match="tensorrt-rtx has no device 'gpu' here"):
        load(folder)
