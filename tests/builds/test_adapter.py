"""Builds with an adapter: the artifact is that of a checkpoint which holds the merged weights, and says what it is made of."""

import dataclasses
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from alize import cli
from alize.arguments import parse
from alize.building import build, estimate_build
from alize.errors import AdapterError, CorruptCheckpoint
from alize.models import adapter as adapter_module
from alize.models.checkpoint import Checkpoint
from alize.models.read_adapter import merge_adapter
from alize.progress import SilentProgress
from alize.validate.judge import Budget
from tests.builds.conftest import WINDOW, Alize
from tests.models.adapters import ATTENTION, TENSORS, edit_tensors, make_adapter
from tests.tiny import tiny_checkpoint

GENEROUS = Budget(quantisation_kl=1e3, quantisation_kl_max=1e3, runtime_kl=1e3, runtime_kl_max=1e3)


@dataclasses.dataclass(frozen=True)
class Made:
    """A base and its adapter, and a checkpoint with the merged weights."""

    base: Path
    adapter: Path
    merged: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("made")
    base = tiny_checkpoint(place / "base", window=WINDOW, tokenizer=True, dtype="bfloat16", shards=1)
    adapter = make_adapter(base, place / "adapter", target_modules=[*ATTENTION, "down_proj", "lm_head"], r=4, lora_alpha=8)
    checkpoint = Checkpoint.open(base)
    merge_adapter(checkpoint, adapter)
    merged = shutil.copytree(base, place / "merged")
    tensors = {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    return Made(base, adapter, merged)


@pytest.mark.parametrize(
    ("target", "options"), [("openvino", {"weights": "int4"}), *((one, {}) for one in ("openvino", "onnxruntime"))]
)
def test_an_artifact_of_the_merged_weights(target: str, options: dict[str, Any], made: Made, tmp_path: Path) -> None:
    with_adapter, without = (
        build(str(source), output=tmp_path / source.name, target=target, budget=GENEROUS, **options, **more)
        for source, more in ((made.base, {"adapter": made.adapter}), (made.merged, {}))
    )
    assert with_adapter.validation == without.validation and with_adapter.validation.verdict == "pass"
    sealed = [{entry.path: entry.sha256 for entry in one.files if entry.path != "report.html"} for one in (with_adapter, without)]
    assert sealed[0] == sealed[1]
    assert with_adapter.source.sha256 == Checkpoint.open(made.base).sha256() != without.source.sha256
    assert with_adapter.source.adapter == merge_adapter(Checkpoint.open(made.base), made.adapter).sha256()
    assert without.source.adapter is None
    assert parse(shlex.split(with_adapter.rebuild)[1:]).adapter == Path("ADAPTER")
    assert with_adapter.source.adapter in (tmp_path / "base" / "report.html").read_text()


def test_validating_again_takes_the_same_adapter(made: Made, tmp_path: Path, alize: Alize) -> None:
    build(str(made.base), adapter=made.adapter, output=tmp_path / "a", target="onnxruntime", budget_seconds=0)
    other = shutil.copytree(made.adapter, tmp_path / "other")
    edit_tensors(other, lambda tensors: next(iter(tensors.values())).add_(0.1))
    words = ["validate", tmp_path / "a", "--validation-budget", "60", "--source", made.base]
    ran = alize(*words, "--adapter", made.adapter)
    assert (ran.code, "verdict  pass" in ran.out) == (0, True), ran.err
    for more, code, said in (
        ([], 2, "was built with an adapter"),
        (["--adapter", other], 3, "is not the adapter that"),
        (["--adapter", tmp_path / "nowhere"], 3, "no such folder"),
    ):
        ran = alize(*words, *more)
        assert (ran.code, said in ran.err) == (code, True), ran.err
    ran = alize("validate", tmp_path / "a", "--adapter", made.adapter)
    assert (ran.code, "give --source too" in ran.err) == (2, True)
    build(str(made.base), output=tmp_path / "plain", target="onnxruntime", budget_seconds=0)
    ran = alize("validate", tmp_path / "plain", "--source", made.base, "--adapter", made.adapter)
    assert (ran.code, "the manifest says none" in ran.err) == (3, True)


def test_nothing_is_left_of_a_build_with_a_damaged_adapter(made: Made, tmp_path: Path) -> None:
    damaged = shutil.copytree(made.adapter, tmp_path / "damaged")
    edit_tensors(damaged, lambda tensors: next(iter(tensors.values()))[0].fill_(torch.nan))
    with pytest.raises(AdapterError, match=r"lora_A\.weight holds NaN"):
        build(str(made.base), adapter=damaged, output=tmp_path / "out" / "a", target="onnxruntime", budget_seconds=0)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_changes_under_the_build(made: Made, tmp_path: Path) -> None:
    adapter = shutil.copytree(made.adapter, tmp_path / "adapter")

    class Meanwhile(SilentProgress):
        def stage(self, name: str, *, total_bytes: int | None = None, steps: int | None = None) -> None:
            if name == "companions":
                os.utime(adapter / TENSORS)

    with pytest.raises(CorruptCheckpoint, match=f"{TENSORS}: changed while it was read"):
        build(
            str(made.base),
            adapter=adapter,
            output=tmp_path / "out" / "a",
            target="onnxruntime",
            budget_seconds=0,
            progress=Meanwhile(),
        )
    assert not (tmp_path / "out").exists()


def test_an_estimate_reads_no_factor_and_counts_the_merge(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_module.LowRank, "add_to", lambda *_: pytest.fail("a product was made"))
    more, less = (
        estimate_build(str(made.base), output=tmp_path / "out", target="openvino", **options)
        for options in ({"adapter": made.adapter}, {})
    )
    assert more.build_memory - less.build_memory == 2 * 320 * 32 + 32 * adapter_module.BLOCK  # the head, and a block
    assert (more.run_memory, more.disk, more.output) == (less.run_memory, less.disk, less.output)


def test_the_command_line(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(made.base), "--adapter", str(made.adapter), "-o", str(tmp_path / "a"), "--target", "onnxruntime"]
    assert cli.main([*words, "--dry-run", "-q"]) == 0
    assert not (tmp_path / "a").exists()
    assert cli.main([*words, "--validation-budget", "0", "-q"]) == 5  # partial: nothing was validated
    assert ", merged with the adapter " in capsys.readouterr().out
    assert cli.main([*words[:3], str(made.base), *words[4:], "-q"]) == 3
    assert "has no adapter_config.json" in capsys.readouterr().err
