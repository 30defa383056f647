"""Builds whose integers were rounded for a text: what it is worth, that it is repeated, and what is said of it."""

import dataclasses
import hashlib
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from alize.arguments import parse
from alize.artifact import Manifest
from alize.artifact.pieces import Pieces
from alize.building import build
from alize.calibration_text import BUILT_IN, LEAST_TOKENS, SEQUENCE, SEQUENCES, CalibrationText
from alize.compilers import compiler_for
from alize.errors import TamperedArtifact, UsageError
from alize.inspect_artifact import describe
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.progress import SilentProgress
from alize.rounding import round_weights
from alize.validate import _calibrated, validate_artifact
from alize.validate.judge import Budget
from alize.validate.stored import as_stored
from tests.builds.conftest import BuiltOnce
from tests.tiny import tiny_checkpoint

GENEROUS = Budget(quantisation_kl=1e3, quantisation_kl_max=1e3, runtime_kl=1e3, runtime_kl_max=1e3)
TEXT = "A captain who left Cadiz in autumn could say when he would see the first island on the other side. " * 8


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "my text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize(
    "options",
    [{"window": 6, "hidden_size": 64, "intermediate_size": 96}, {"experts": 4, "hidden_size": 64, "intermediate_size": 96}],
    ids=["dense", "mixtral"],
)
def test_logits_come_nearer(options: dict[str, int], text: Path, tmp_path: Path) -> None:
    """Than by rounding the weights for themselves; and the integers are the same the second time."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "model", tokenizer=True, **options))  # type: ignore[arg-type]
    chosen = CalibrationText.open(str(text))
    tokens = chosen.sequences(checkpoint)[0][:128]
    expected = Reference(checkpoint).run([tokens]).logits[0]
    errors, digests = [], []
    for number, used in enumerate((None, chosen, chosen)):
        rounded = round_weights(checkpoint, "int4-g32", Pieces(tmp_path / str(number)), text=used, progress=SilentProgress())
        assert rounded is not None
        found = Reference(checkpoint, weights=as_stored("int4-g32", rounded)).run([tokens]).logits[0]
        errors.append(float(np.square(found - expected).mean()))
        digests.append(rounded.digest())
    assert errors[1] < 0.8 * errors[0]
    assert digests[1] == digests[2] != digests[0]


def test_a_walk_that_was_interrupted_goes_on(text: Path, tmp_path: Path) -> None:
    """What is there already is used as it is, and the rest comes out the same."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "model", tokenizer=True, experts=4))
    chosen = CalibrationText.open(str(text))
    whole, halves = Pieces(tmp_path / "whole"), Pieces(tmp_path / "halves")
    first = round_weights(checkpoint, "int4", whole, text=chosen, progress=SilentProgress())
    round_weights(checkpoint, "int4", halves, text=chosen, progress=SilentProgress())
    lost = [name for name in first.forms if ".layers.1." in name][2:] if first else []
    for name in lost:
        halves.drop(f"{name}.integers")
    second = round_weights(checkpoint, "int4", halves, text=chosen, progress=SilentProgress())
    assert first and second and lost and first.digest() == second.digest()


def test_experts_that_few_tokens_chose_are_named(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "model", tokenizer=True, experts=4))
    monkeypatch.setattr("alize.calibration.LEAST_ROWS", 10**6)
    progress = Notes()
    found = round_weights(
        checkpoint, "int4", Pieces(tmp_path / "pieces"), text=CalibrationText.open(str(text)), progress=progress
    )
    plain = round_weights(checkpoint, "int4", Pieces(tmp_path / "plain"), progress=SilentProgress())
    (note,) = [note for note in progress.notes if "not calibrated" in note]
    assert note.startswith("36 matrices of experts") and "model.layers.0.mlp.experts.0.gate_proj.weight" in note
    name = "model.layers.2.mlp.experts.3.down_proj.weight"
    assert found and plain and torch.equal(found(name).values, plain(name).values)


def with_integers_of(manifest: Manifest, other: Manifest) -> Manifest:
    structure = {**manifest.target.structure, "integers_sha256": other.target.structure["integers_sha256"]}
    return dataclasses.replace(manifest, target=dataclasses.replace(manifest.target, structure=structure))


@pytest.mark.parametrize(("target", "model"), [("openvino", "windowed"), ("onnxruntime", "mixtral")])
def test_it_is_built_sealed_and_validated_again(target: str, model: str, built: BuiltOnce, text: Path) -> None:
    one = built(target, model=model, weights="int4", calibrate=str(text), budget=GENEROUS)
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    assert one.manifest.validation.verdict == "pass"
    assert one.manifest.target.options["calibrate"] == f"my text.txt, sha256 {digest}"
    options = parse(shlex.split(one.manifest.rebuild)[1:])
    assert (options.weights, options.calibrate) == ("int4", "my text.txt")
    assert f"weights calibrated with my text.txt, sha256 {digest}" in "\n".join(describe(one.folder, one.manifest))
    assert "calibrated with" in (one.folder / "report.html").read_text(encoding="utf-8")
    plain = built(target, model=model, weights="int4", budget=GENEROUS).manifest
    assert one.manifest.target.structure["integers_sha256"] != plain.target.structure["integers_sha256"]
    again = validate_artifact(one.folder, source=str(one.checkpoint), budget_seconds=300)
    assert again["verdict"] == "pass" and not again["findings"]
    compiler, checkpoint = compiler_for(target), Checkpoint.open(one.checkpoint)
    _calibrated(one.folder, one.manifest, checkpoint, compiler)
    with pytest.raises(TamperedArtifact, match=r"holds integers with the sha256 [0-9a-f]{12}\.\.\., its manifest names "):
        _calibrated(one.folder, with_integers_of(one.manifest, plain), checkpoint, compiler)


def test_the_text_that_comes_with_alize() -> None:
    text = CalibrationText.open(BUILT_IN)
    assert text.name == "built-in" and len(text.text) > 30_000
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()


def test_a_long_text_is_read_in_places(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "model", tokenizer=True))
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 160, encoding="utf-8")
    sequences = CalibrationText.open(str(path)).sequences(checkpoint)
    assert [len(sequence) for sequence in sequences] == [SEQUENCE] * SEQUENCES


def test_what_cannot_be_used_is_refused(tmp_path: Path, text: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", tokenizer=True)
    bare = tiny_checkpoint(tmp_path / "bare")
    short, binary = tmp_path / "short.txt", tmp_path / "binary"
    short.write_text("too short", encoding="utf-8")
    binary.write_bytes(b"abc\xff\xfe")

    def refusal(source: Path, calibrate: Path, weights: str = "int4") -> str:
        with pytest.raises(UsageError) as caught:
            build(str(source), output=tmp_path / "out", target="openvino", weights=weights, calibrate=str(calibrate))
        return str(caught.value)

    assert refusal(checkpoint, text, "bf16") == "--calibrate is for --weights int8, int4 and mixed, not for bf16"
    assert f"tokens, {LEAST_TOKENS} are needed at least; give a longer text" in refusal(checkpoint, short)
    assert "is not UTF-8 at byte 3; give a file of plain text" in refusal(checkpoint, binary)
    assert "cannot be read: No such file or directory; give a file of plain text" in refusal(checkpoint, tmp_path / "none")
    assert "tokenizer.json is missing; add it or leave --calibrate out" in refusal(bare, text)
    assert not (tmp_path / "out").exists()
