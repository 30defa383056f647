"""What a build seals: the files, what the manifest says of them, the weights bit for bit, and the same bytes every time."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from alize import __version__
from alize.arguments import parse
from alize.artifact import Manifest, read, verify
from alize.building import build
from alize.compilers import compiler_for
from alize.errors import NotValidated, ValidationFailed
from alize.models.checkpoint import Checkpoint
from alize.record import OWN_RUN
from alize.runtimes.golden import read_golden
from alize.runtimes.model import load
from alize.validate.cases import plan_for
from alize.validate.judge import Budget
from tests.builds.conftest import WINDOW, BuiltOnce
from tests.tiny import RUN_HERE, tiny_checkpoint

TOKENIZER = {"config.json", "generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"}
ALWAYS = TOKENIZER | {"chat_form.json", "golden.safetensors", "report.html"}
FILES = {
    "openvino": ALWAYS | {f"openvino_{name}.{kind}" for name in ("model", "tokenizer", "detokenizer") for kind in ("xml", "bin")},
    "onnxruntime": ALWAYS | {"model.onnx", "model.onnx.data", "genai_config.json"},
}
DTYPES = {"windowed": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

each_target = pytest.mark.parametrize("target", RUN_HERE)


@each_target
def test_it_holds_these_files_and_no_others(target: str, built: BuiltOnce) -> None:
    one = built(target)
    assert {entry.path for entry in one.manifest.files} == FILES[target]
    assert one.manifest.unsealed == ("build-record.json",)
    there = {path.relative_to(one.folder).as_posix() for path in one.folder.rglob("*")}
    assert there == FILES[target] | {"build-record.json", "manifest.json"}
    verify(one.folder, read(one.folder), full=True)


@each_target
def test_what_travels_is_the_checkpoints_own(target: str, built: BuiltOnce) -> None:
    one = built(target)
    for name in TOKENIZER:
        assert (one.folder / name).read_bytes() == (one.checkpoint / name).read_bytes()


@each_target
def test_the_record_has_every_stage(target: str, built: BuiltOnce) -> None:
    record = json.loads((built(target).folder / "build-record.json").read_text())
    assert set(record) == {"machine", "stages", "estimate", "measured"}
    stages = {stage["stage"]: stage for stage in record["stages"]}
    building = {
        "hash the checkpoint",
        "export to ONNX",
        f"lower to {target}",
        "companions",
        "compare weights",
        "reference",
        "seal",
    }
    assert stages.keys() > building | {"inspect the compiled graph", "artifact", "greedy continuation"}
    assert {name for name, stage in stages.items() if stage["own_run"]} == OWN_RUN & stages.keys()
    for stage in stages.values():
        assert stage["seconds"] >= 0
        assert all(peak is None or peak > 1e7 for peak in (stage["peak_anonymous_bytes"], stage["peak_mapped_bytes"]))
    assert record["estimate"]["problem"] is None
    assert record["estimate"]["stages"].keys() == stages.keys() - {"open"}
    measured = record["measured"]
    assert measured["build_seconds"] + measured["validate_seconds"] == pytest.approx(
        sum(stage["seconds"] for stage in record["stages"]), abs=0.2
    )


@each_target
def test_the_manifest_says_what_it_is(target: str, built: BuiltOnce) -> None:
    one = built(target)
    manifest, checkpoint = read(one.folder), Checkpoint.open(one.checkpoint)
    assert manifest == one.manifest
    assert (manifest.schema, manifest.alize) == (3, __version__)
    source = manifest.source
    assert (source.kind, source.repo, source.commit) == ("folder", None, None)
    assert source.sha256 == checkpoint.sha256()
    assert (source.architecture, source.family) == ("MistralForCausalLM", "mistral")
    assert source.config["windows"] == [WINDOW] * 3
    model = manifest.model
    assert (model.layers, model.query_heads, model.key_value_heads, model.head_size) == (3, 4, 2, 8)
    assert (model.hidden_size, model.vocab_size, model.max_positions) == (32, 320, 512)
    assert (model.windows, model.bos_token_id, model.eos_token_ids) == ((WINDOW,) * 3, 1, (2,))


@each_target
def test_the_manifest_says_what_it_was_compiled_for(target: str, built: BuiltOnce) -> None:
    manifest, compiler = built(target).manifest, compiler_for(target)
    assert (manifest.target.backend, manifest.target.device, manifest.target.weights) == (target, "cpu", "fp32")
    assert manifest.target.versions == compiler.versions()
    assert target in manifest.target.versions
    assert manifest.target.passes[0] == "store_weights_fp32"
    assert manifest.target.structure["windows"] == [WINDOW] * 3
    assert manifest.target.structure["fused_attention_nodes"] == 3
    assert manifest.configurations == compiler.plan("cpu").configurations


@each_target
def test_the_manifest_says_what_was_measured(target: str, built: BuiltOnce) -> None:
    validation = built(target).manifest.validation
    assert (validation.level, validation.verdict, validation.left_out) == ("device-validated", "pass", ())
    assert validation.budget == Budget().as_dict()
    assert {case.question for case in validation.cases} == {"compile fidelity", "runtime loss"}
    assert all(case.passed for case in validation.cases)
    names = [case.name for case in validation.cases if case.question == "compile fidelity"]
    assert names == ["one append", "chunks of 10, then decode past two windows", "decode across the edge", "unequal batch"]
    assert set(validation.figures) == {"float32 floor", "bfloat16 floor"}
    limit = 30 * validation.figures["float32 floor"]["logit_error_max"] * 1.001  # figures are rounded
    assert all(case.figures["logit_error_max"] <= limit for case in validation.cases if case.question == "compile fidelity")


@each_target
def test_the_command_in_it_rebuilds_it(target: str, built: BuiltOnce) -> None:
    words = shlex.split(built(target).manifest.rebuild)
    assert words[0] == "alize"
    options = parse(words[1:])
    assert (options.command, options.target, options.device, options.weights) == ("build", target, "cpu", "fp32")


@each_target
def test_golden_prompts_cross_the_window(target: str, built: BuiltOnce) -> None:
    budget, cases = read_golden(built(target).folder / "golden.safetensors")
    positions = {int(position) for case in cases for position in case.positions}
    assert {0, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 2} <= positions
    assert budget.kl == Budget().runtime_kl_max


@each_target
@pytest.mark.parametrize("model", DTYPES)
def test_default_weights_are_the_checkpoints_bit_for_bit(target: str, model: str, built: BuiltOnce) -> None:
    one = built(target, model)
    stored = dict(compiler_for(target).probe.stored_weights(one.folder))
    shards = [safetensors.torch.load_file(path) for path in sorted(one.checkpoint.glob("*.safetensors"))]
    original = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert stored.keys() == original.keys()
    for name, tensor in original.items():
        assert tensor.dtype == DTYPES[model]
        matrix = tensor.ndim == 2
        assert stored[name].dtype == (DTYPES[model] if matrix else torch.float32), name  # norms: a few floats a layer
        back = stored[name].to(DTYPES[model]).contiguous()
        assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8)), name
    assert "quantisation loss" not in {case.question for case in one.manifest.validation.cases}


@each_target
def test_narrower_weights_are_measured_as_a_loss(target: str, built: BuiltOnce) -> None:
    manifest = built(target, weights="fp16").manifest
    assert manifest.target.weights == "fp16"
    (case,) = [case for case in manifest.validation.cases if case.question == "quantisation loss"]
    assert case.name == "weights in fp16"
    assert case.passed
    assert 0 < case.figures["kl_mean"] <= case.figures["kl_max"] < 0.01
    assert case.figures["logit_error_max"] > manifest.validation.figures["float32 floor"]["logit_error_max"]


def test_a_loss_beyond_the_budget_seals_nothing(built: BuiltOnce, tmp_path: Path) -> None:
    checkpoint, output = built("onnxruntime").checkpoint, tmp_path / "out"
    with pytest.raises(ValidationFailed, match=r"quantisation loss, weights in fp16: mean KL .* above the budget of 1e-12"):
        build(str(checkpoint), output=output, target="onnxruntime", weights="fp16", budget=Budget(quantisation_kl=1e-12))
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed-report.html"]
    assert "quantisation loss" in (tmp_path / "out.failed-report.html").read_text()


@each_target
def test_a_budget_of_nothing_is_partial_and_refused(target: str, built: BuiltOnce) -> None:
    one = built(target, budget_seconds=0.0)
    validation = one.manifest.validation
    assert (validation.verdict, validation.cases, validation.figures) == ("partial", (), {})
    assert validation.left_out == ("everything: the validation budget is 0 s",)
    with pytest.raises(NotValidated, match=r"'partial', not 'pass', left out: everything.*: rebuild with `alize build "):
        load(one.folder)


def test_a_budget_below_the_minimum_measures_what_fits(built: BuiltOnce, tmp_path: Path) -> None:
    checkpoint, info = built("onnxruntime").checkpoint, built("onnxruntime").manifest.model
    plans = ((2.0**power, plan_for(Checkpoint.open(checkpoint), info, 2.0**power)) for power in range(-30, 9))
    seconds, plan = next((seconds, plan) for seconds, plan in plans if plan.length)
    build(str(checkpoint), output=tmp_path / "out", target="onnxruntime", budget_seconds=seconds)
    validation = read(tmp_path / "out").validation
    assert (validation.verdict, validation.left_out) == ("partial", plan.left_out)
    assert [case.name for case in validation.cases] == [case.name for case in plan.cases]
    with pytest.raises(NotValidated, match="'partial', not 'pass', left out: all but"):
        load(tmp_path / "out")


def test_a_small_budget_still_passes_and_says_what_it_left_out(built: BuiltOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alize.validate.cases.USUAL_SECONDS", 1e-9)
    one = built("onnxruntime", weights="bf16")
    assert one.manifest.validation.verdict == "pass"
    assert len(one.manifest.validation.left_out) == 4
    names = [case.name for case in one.manifest.validation.cases]
    assert names == ["decode across the edge", "chunks of 7", "unequal batch", "weights in bf16"]
    load(one.folder).close()


def differing(one: Manifest, other: Manifest) -> list[str]:
    files = [{entry.path: entry.sha256 for entry in manifest.files} for manifest in (one, other)]
    return [path for path in files[0] if files[0][path] != files[1].get(path)]


@each_target
def test_the_same_input_gives_the_same_bytes(target: str, built: BuiltOnce, tmp_path: Path) -> None:
    """From another copy of the checkpoint, into a folder of another depth and name, later in the same process."""
    one = built(target)
    copy = shutil.copytree(one.checkpoint, tmp_path / "elsewhere" / "another name")
    again = build(str(copy), output=tmp_path / "deeper" / "still" / "x", target=target)
    assert differing(one.manifest, again) == []
    assert again.to_json() == one.manifest.to_json()


def test_another_process_gives_the_same_bytes(built: BuiltOnce, tmp_path: Path) -> None:
    """Nor do hashes of strings, the shards or the working folder leave a trace."""
    one = built("openvino")
    tiny_checkpoint(tmp_path / "other-shards", window=WINDOW, tokenizer=True, shards=3)
    words = ["build", "other-shards", "--target", "openvino", "-o", "out", "--quiet"]
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    done = subprocess.run(
        [sys.executable, "-m", "alize", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert differing(one.manifest, read(tmp_path / "out")) == []


@each_target
def test_no_path_of_this_machine_is_sealed(target: str, built: BuiltOnce) -> None:
    one = built(target)
    for entry in one.manifest.files:
        content = (one.folder / entry.path).read_bytes()
        for place in (one.folder.parent, one.checkpoint, Path.cwd(), Path.home()):
            assert str(place).encode() not in content, f"{entry.path} names {place}"
