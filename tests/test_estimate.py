"""What a build will need is told from headers alone, and what cannot fit is refused before it starts, with what would fit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from alize import estimate as module
from alize.building import build, estimate_build
from alize.calibration_costs import Calibrating
from alize.compilers import Compiler
from alize.costs import Model, build_memory, run_memory
from alize.drafting import model_info
from alize.durations import stage_seconds
from alize.errors import BuildError, UsageError
from alize.estimate import Estimate, estimate
from alize.mixing_costs import WEIGH, Weighing
from alize.models.checkpoint import Checkpoint
from alize.speeds import Speed
from alize.validate.cases import plan_for
from tests.builds.conftest import Alize, alize  # noqa: F401 - a fixture
from tests.tiny import RUN_HERE, tiny_checkpoint

LAYERS = 6
GB = 10**9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", layers=LAYERS, window=12, dtype="bfloat16")


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: 16 * GB)
    monkeypatch.setattr(module, "free_bytes", lambda _: 16 * GB)


def expected(checkpoint: Path, *, target: str = "openvino", weights: str = "bf16", **options: Any) -> Estimate:
    opened = Checkpoint.open(checkpoint)
    info = model_info(opened)
    plan, output = plan_for(opened, info, 300.0), checkpoint / "out"
    return estimate(opened, info, plan, target=target, weights=weights, output=output, choices=("fp32", "fp16"), **options)


def model(folder: Path, **options: Any) -> Model:
    checkpoint = Checkpoint.open(tiny_checkpoint(folder, dtype="bfloat16", **options))
    return Model.of(checkpoint, model_info(checkpoint), target="openvino", weights="bf16")


def test_calibrating_is_counted(checkpoint: Path) -> None:
    """Of matrices so small the process itself takes most; in time the text goes through every layer."""
    plain, calibrated = (expected(checkpoint, weights="int4", calibrated=wanted) for wanted in (False, True))
    assert calibrated.build_seconds > plain.build_seconds
    shapes = {"model.layers.0.mlp.gate_proj.weight": (14336, 4096), "model.layers.0.mlp.down_proj.weight": (4096, 14336)}
    found = Calibrating.of(shapes, model_info(Checkpoint.open(checkpoint)))
    assert found.memory >= 4 * 2 * 14336**2  # what a layer of Mistral-7B takes at its peak
    assert 14336**3 / 3 < found.operations < 2e13


def test_a_mix_is_counted(checkpoint: Path) -> None:
    """Its budget gives its size, whatever will be chosen; what it is weighed with takes memory and time."""
    narrow, mixed, wide = (expected(checkpoint, weights=name) for name in ("int4-g32", "mixed-b6-g32", "int8"))
    assert narrow.output < mixed.output < wide.output
    assert mixed.output - narrow.output == pytest.approx((wide.output - narrow.output) * (6 - 4.4) / (8.4 - 4.4), rel=0.1)
    assert mixed.stages[WEIGH] > 0 and WEIGH not in narrow.stages
    shapes = {"model.layers.0.mlp.gate_proj.weight": (14336, 4096), "model.layers.0.mlp.down_proj.weight": (4096, 14336)}
    found = Weighing.of(shapes, dataclasses.replace(model_info(Checkpoint.open(checkpoint)), layers=1), 14336)
    assert 4 * 5 * 14336 * 4096 < found.memory < 4e9 and found.rounded == 4 * 14336 * 4096


def test_sizes_come_from_the_headers(tmp_path: Path) -> None:
    small = model(tmp_path / "dense", layers=2)
    matrices = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 56 * 32  # q and o, k and v, the MLP
    assert small.layer == matrices + 2 * 32
    assert (small.matrix, small.embedding, small.head) == (56 * 32, 320 * 32, 320 * 32)
    assert small.stored_bytes == 2 * (2 * matrices + 2 * 320 * 32) + 4 * (2 * 2 * 32 + 32)
    assert small.read_bytes == 2 * (2 * small.layer + 2 * 320 * 32 + 32)
    assert small.largest_bytes == 2 * 320 * 32
    assert small.active == 2 * small.layer + small.head
    sparse = model(tmp_path / "sparse", layers=2, experts=4, top_k=1)
    assert sparse.matrix == small.matrix
    assert sparse.layer == small.layer + 9 * 56 * 32 + 4 * 32
    assert sparse.active == 2 * (small.layer + 4 * 32) + small.head


def test_building_does_not_grow_with_layers_and_the_artifacts_run_does(tmp_path: Path) -> None:
    small, large = (model(tmp_path / str(layers), layers=layers) for layers in (2, 9))
    plan = plan_for(Checkpoint.open(tmp_path / "2"), small.info, 300.0)
    assert build_memory(small, plan) == build_memory(large, plan)
    grown = run_memory(large, plan, 9) - run_memory(small, plan, 2)
    assert grown == 7 * 2 * 4 * small.layer
    assert run_memory(large, plan, 1) < run_memory(small, plan, 2)
    speed = Speed(**dict.fromkeys((field.name for field in dataclasses.fields(Speed)), 1e6))
    more, less = (stage_seconds(one, plan, speed, tokenizer=False, exact=False) for one in (large, small))
    assert more.keys() == less.keys()
    assert {name for name in more if more[name] <= less[name]} == {"companions", "report"}


def test_slices_are_the_fewest_that_fit(checkpoint: Path) -> None:
    whole = expected(checkpoint)
    assert (whole.slices, whole.problem, whole.run_memory) == (None, None, whole.whole_run_memory)
    assert expected(checkpoint, max_memory=whole.run_memory).slices is None
    halves = expected(checkpoint, max_memory=whole.run_memory - 1)
    assert halves.slices == ((0, 3), (3, 6))
    assert halves.problem is None
    assert halves.run_memory < whole.run_memory == halves.whole_run_memory


def test_what_would_fit_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    least = expected(checkpoint, max_memory=1).run_memory
    monkeypatch.setattr(module, "build_memory", lambda *_: 1)
    assert expected(checkpoint, max_memory=least).problem is None
    problem = expected(checkpoint, max_memory=least - 1).problem
    assert problem is not None
    assert problem.startswith("validating needs 4")
    assert problem.endswith(
        "of memory to run the artifact in bf16, 432 MB may be used: --weights fp32 (432 MB), build on a larger machine"
    )
    monkeypatch.setattr(module, "free_bytes", lambda _: 10**6)
    problem = expected(checkpoint).problem
    assert problem is not None
    assert problem.startswith("the build needs 3.")
    assert problem.endswith(f"of disk in {checkpoint}, 1.0 MB are free: choose an --output on another disk")
    monkeypatch.undo()
    monkeypatch.setattr(module, "free_bytes", lambda _: 16 * GB)
    problem = expected(checkpoint, max_memory=10**6).problem
    assert problem is not None
    assert "for one layer in float32 and what is computed with it, 1.0 MB may be used: free memory, or build on" in problem


@pytest.mark.parametrize("target", RUN_HERE)
def test_what_does_not_fit_is_refused_before_it_starts(target: str, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    with pytest.raises(BuildError, match=r"1\.0 MB may be used"):
        build(str(checkpoint), output=output, target=target, max_memory=10**6)
    assert list(tmp_path.iterdir()) == []
    told = estimate_build(str(checkpoint), output=output, target=target, max_memory=10**6)
    assert told.problem is not None
    with pytest.raises(BuildError):
        told.check()


@pytest.mark.parametrize("target", RUN_HERE)
def test_a_build_that_does_not_fit_at_once_is_run_in_slices(target: str, checkpoint: Path, tmp_path: Path) -> None:
    limit = estimate_build(str(checkpoint), output=tmp_path / "out", target=target).run_memory - 1
    manifest = build(str(checkpoint), output=tmp_path / "out", target=target, max_memory=limit)
    assert manifest.validation.verdict == "pass"
    assert manifest.target.structure["compiled_in_slices"] == [[0, 2], [3, 5]]
    assert manifest.validation.left_out == ("all layers at once and the greedy continuation: it ran in 2 slices of 3 layers",)
    whole = build(str(checkpoint), output=tmp_path / "whole", target=target)
    assert "compiled_in_slices" not in whole.target.structure
    same = {(case.name, case.question): case for case in whole.validation.cases}
    paged = target == "openvino"  # which slices cannot be: what load runs is then the stateful form, that was measured
    assert [options.options.get("attention") for options in (whole.configurations[0], manifest.configurations[0])] == (
        ["paged", None] if paged else [None, None]
    )
    compared = [case for case in manifest.validation.cases if not (paged and case.question == "runtime loss")]
    assert len(compared) > 2
    assert all(same[case.name, case.question] == case for case in compared)
    weights = {entry.path: entry for entry in manifest.files if entry.path.startswith(("openvino_model", "model.onnx"))}
    assert weights == {entry.path: entry for entry in whole.files if entry.path in weights}


def test_a_dry_run_tells_and_writes_nothing(checkpoint: Path, tmp_path: Path, alize: Alize) -> None:  # noqa: F811
    words = ("build", checkpoint, "-o", tmp_path / "out", "--dry-run")
    ran = alize(*words)
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()] == ["memory", "disk", "time", "fits"]
    assert ran.out.endswith("fits    yes\n")
    ran = alize(*words, "--max-memory", "1MB")
    assert ran.code == 0
    assert "fits    no: the build needs" in ran.out
    ran = alize(*words, "--json", "--max-memory", "1MB")
    assert ran.code == 0
    assert '"memory_limit": 1000000' in ran.out
    assert list(tmp_path.iterdir()) == []
    ran = alize("build", checkpoint, "-o", tmp_path / "out", "--max-memory", "1MB")
    assert ran.code == 4
    assert "alize: estimate: memory" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * GB), ("500M", 5 * 10**8), ("2e9", 2 * GB), ("1.5 tb", 1500 * GB), ("7kB", 7000)]
)
def test_sizes_as_they_are_written(text: str, size: int, checkpoint: Path, tmp_path: Path, alize: Alize) -> None:  # noqa: F811
    ran = alize("build", checkpoint, "-o", tmp_path / "out", "--dry-run", "--json", "--max-memory", text)
    assert f'"memory_limit": {min(size, 16 * GB)}' in ran.out


@pytest.mark.parametrize("text", ["much", "0", "nan", "GB", "infGB"])
def test_sizes_that_are_none(text: str, checkpoint: Path, alize: Alize) -> None:  # noqa: F811
    ran = alize("build", checkpoint, "--dry-run", "--max-memory", text)
    assert (ran.code, ran.out) == (2, "")
    assert f"--max-memory {text} must be a size like 8GB or 500M" in ran.err


def test_estimates_are_plain_numbers(checkpoint: Path) -> None:
    told = expected(checkpoint)
    assert told.as_dict().keys() == {field.name for field in dataclasses.fields(told)}
    assert told.line().count("\n") == 0


@pytest.mark.parametrize(("weights", "graph"), [("fp16", 1), ("int8", 2)])  # integers lie in files of their own beside the graph
def test_each_plan_holds_the_weights(weights: str, graph: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, four = (expected(checkpoint, target="tensorrt-rtx", weights=weights, plans=plans) for plans in (1, 4))
    opened = Checkpoint.open(checkpoint)
    stored = Model.of(opened, model_info(opened), target="tensorrt-rtx", weights=weights).stored_bytes
    plan = (four.output - one.output) / 3
    assert plan > stored
    assert (one.disk - one.output, four.disk - four.output) == (graph * stored, graph * stored)
    assert four.build_seconds > one.build_seconds
    monkeypatch.setattr(module, "free_bytes", lambda _: one.disk)
    assert "fewer SMs at a time" in str(expected(checkpoint, target="tensorrt-rtx", weights=weights, plans=4).problem)


def test_an_engine_is_held_whole_while_it_is_built(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    plan = plan_for(opened, model_info(opened), 300.0)
    small, large = (
        dataclasses.replace(Model.of(opened, model_info(opened), target="tensorrt-rtx", weights="fp16"), stored_bytes=size)
        for size in (GB, 3 * GB)
    )
    assert build_memory(large, plan) - build_memory(small, plan) > 1.4 * 2 * GB


def test_a_graph_that_is_proven_whole_has_to_fit_whole(checkpoint: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    info = model_info(opened)
    plan = plan_for(opened, info, 300.0)
    models = {"fp16": Model.of(opened, info, target="tensorrt-rtx", weights="fp16")}
    limit = run_memory(models["fp16"], plan, LAYERS) - 1
    assert module._memory_problem(models, plan, "fp16", 0, limit, 0) is None  # a slice of its layers fits
    told = module._memory_problem(models, plan, "fp16", 0, limit, 1)
    assert told is not None and "to run the artifact in fp16" in told and told.endswith("build on a larger machine")
    assert module._memory_problem(models, plan, "fp16", 0, limit + 1, 1) is None
    assert (
        estimate(opened, info, plan, target="tensorrt-rtx", weights="fp16", output=Path("out"), plans=1, max_memory=limit).slices
        is None
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibrate": "built-in", "weights": "fp32"}, "--calibrate"),
        ({"experts": "apart"}, "--experts"),
        ({"target": "tensorrt-rtx", "weights": "fp16"}, "needs --sm"),
    ],
)
def test_an_estimate_refuses_what_the_build_refuses(options: dict[str, Any], said: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UsageError, match=said):
        patch.setattr(Compiler, "versions", lambda compiler: {})
        estimate_build(str(checkpoint), **({"output": tmp_path / "out", "target": "onnxruntime"} | options))


def test_a_dry_run_counts_the_sms(checkpoint: Path, alize: Alize) -> None:  # noqa: F811
    words = ("build", checkpoint, "--target", "tensorrt-rtx", "--weights", "fp16", "--dry-run", "--json", "-o", "unwritten")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiler, "versions", lambda compiler: {})
        sizes = [json.loads(alize(*words, "--sm", sms).out)["output"] for sms in ("89", "80,86,89")]
    assert sizes[1] > 2 * sizes[0] - 10_000_000
    assert sizes[1] > sizes[0]
