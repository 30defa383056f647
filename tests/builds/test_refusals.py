"""What is refused of an artifact and of those who use it: a changed byte, a newer schema, tokens, prompts, devices, names."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alize.artifact import SCHEMA, DeviceState, Manifest, read
from alize.building import build
from alize.compilers import COMPILERS, compiler_for, normal_weights
from alize.errors import (
    ArtifactError,
    ContextExceeded,
    DeviceUnavailable,
    SessionError,
    TamperedArtifact,
    TokenOutOfRange,
    UnknownSchema,
    UsageError,
)
from alize.runtimes.model import load
from alize.runtimes.registry import backend_module
from tests.builds.conftest import Alize, Built, BuiltOnce
from tests.tiny import RUN_HERE

each_target = pytest.mark.parametrize("target", RUN_HERE)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@each_target
def test_a_changed_byte_in_any_file_is_refused(target: str, built: BuiltOnce, copied: Callable[[Built], Path]) -> None:
    one = built(target)
    folder = copied(one)
    time.sleep(0.05)  # a file that is too new is hashed anew at every load: here none is
    load(folder).close()
    state = DeviceState(one.manifest.digest, backend_module(target).fingerprint("cpu"))
    assert state.file_records(folder).keys() == {entry.path for entry in one.manifest.files}
    for entry in one.manifest.files:
        whole = (folder / entry.path).read_bytes()
        for offset in {0, len(whole) // 2, len(whole) - 1}:
            flip(folder / entry.path, offset)
            with pytest.raises(TamperedArtifact, match=f": {entry.path} is not what was sealed .*: rebuild with `alize build "):
                load(folder)
            (folder / entry.path).write_bytes(whole)
    load(folder).close()


@each_target
def test_a_file_that_grew_shrank_went_or_came_is_refused(target: str, built: BuiltOnce, copied: Callable[[Built], Path]) -> None:
    one = built(target)
    folder = copied(one)
    for entry in one.manifest.files:
        path = folder / entry.path
        whole = path.read_bytes()
        for wrong in (whole + b"\0", whole[:-1]):
            path.write_bytes(wrong)
            with pytest.raises(TamperedArtifact, match=f"{len(wrong)} bytes, not {len(whole)}"):
                load(folder)
        path.unlink()
        with pytest.raises(TamperedArtifact, match=f"{entry.path} is missing: rebuild with"):
            load(folder)
        path.write_bytes(whole)
    (folder / "stray.bin").touch()
    with pytest.raises(TamperedArtifact, match=r"stray\.bin is not part of the artifact: remove it"):
        load(folder)


def test_a_changed_byte_of_the_manifest_is_refused(built: BuiltOnce, copied: Callable[[Built], Path]) -> None:
    folder = copied(built("onnxruntime"))
    whole = (folder / "manifest.json").read_bytes()
    for offset in range(0, len(whole), 97):
        flip(folder / "manifest.json", offset)
        with pytest.raises(ArtifactError):  # not every change leaves JSON
            load(folder)
        (folder / "manifest.json").write_bytes(whole)
    load(folder).close()


def test_what_is_not_sealed_may_go(built: BuiltOnce, copied: Callable[[Built], Path]) -> None:
    folder = copied(built("onnxruntime"))
    (folder / "build-record.json").unlink()
    load(folder).close()


def test_a_newer_schema_is_refused(built: BuiltOnce, copied: Callable[[Built], Path], alize: Alize) -> None:
    folder = copied(built("onnxruntime"))
    fields = json.loads((folder / "manifest.json").read_text()) | {"schema": SCHEMA + 1, "a field of the future": True}
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(
        UnknownSchema, match=f"schema {SCHEMA + 1} is not the schema {SCHEMA} that this alize reads: upgrade with `pip install"
    ):
        load(folder)
    for words in (["run", folder, "Hello"], ["validate", folder], ["inspect", folder]):
        ran = alize(*words, "-q")
        assert (ran.code, ran.out, ran.err.count("\n")) == (6, "", 1)
        assert "upgrade with" in ran.err


def test_exit_codes_of_refused_artifacts(built: BuiltOnce, copied: Callable[[Built], Path], alize: Alize, tmp_path: Path) -> None:
    folder = copied(built("onnxruntime"))
    assert alize("run", folder, "Hello", "--max-new-tokens", "2", "-q").code == 0
    flip(folder / "model.onnx.data", 1000)
    ran = alize("run", folder, "Hello", "-q")
    assert (ran.code, ran.out, ran.err.count("\n")) == (6, "", 1)
    assert "model.onnx.data is not what was sealed" in ran.err
    ran = alize("run", tmp_path / "nothing", "Hello", "-q")
    assert (ran.code, ran.err.count("\n")) == (6, 1)
    partial = built("onnxruntime", budget_seconds=0.0).folder
    ran = alize("run", partial, "Hello", "-q")
    assert (ran.code, ran.err.count("\n")) == (6, 1)
    assert "'partial'" in ran.err


@each_target
def test_tokens_and_prompts(target: str, built: BuiltOnce) -> None:
    with load(built(target).folder) as model, model.session() as session:
        for token in (-1, 320, 2**40):
            with pytest.raises(TokenOutOfRange, match=f"token {token} at index 1 of row 0 is outside 0..319"):
                session.append([[5, token]])
        with pytest.raises(SessionError, match="row 0 is an empty prompt: append at least one token a row"):
            session.append([[]])
        assert session.position == 0
        assert session.append([[5, 319]]).shape == (1, 1, 320)
        long = session.append([[5] * 600])  # more than max_positions: every layer has a window
        assert (long.shape, session.position) == ((1, 1, 320), 602)


@each_target
def test_a_prompt_beyond_the_models_maximum(target: str, built: BuiltOnce, alize: Alize) -> None:
    one = built(target, "full")
    with load(one.folder) as model, model.session() as session:
        with pytest.raises(ContextExceeded, match="prompt of 513 tokens at position 0 needs 513 positions, the model has 512"):
            session.append([[5] * 513])
        session.append([[5] * 512])
        with pytest.raises(ContextExceeded, match="prompt of 1 tokens at position 512 needs 513 positions"):
            session.append([[5]])
    ran = alize("run", one.folder, "x" * 512, "-q")  # and a BOS
    assert (ran.code, ran.out, ran.err.count("\n")) == (8, "", 1)
    assert "the model has 512: shorten the prompt" in ran.err
    assert alize("run", one.folder, "", "-q").code == 2


@each_target
def test_a_device_that_is_not_there(target: str, built: BuiltOnce, alize: Alize, tmp_path: Path) -> None:
    one = built(target)
    with pytest.raises(DeviceUnavailable, match=f"{target} has no device 'gpu' here: use one of cpu"):
        load(one.folder, device="gpu")
    with pytest.raises(UsageError, match=rf"--device npu: target {target} is not compiled for it.*: use cpu"):
        build(str(one.checkpoint), output=tmp_path / "out", target=target, device="npu")
    ran = alize("build", one.checkpoint, "--target", target, "--device", "npu", "-o", tmp_path / "out", "-q")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    ran = alize("run", one.folder, "Hello", "--device", "gpu", "-q")
    assert (ran.code, ran.err.count("\n")) == (7, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "abacus"], "'abacus' is unknown: use openvino or onnxruntime or tensorrt"),
        (["--sm", "89"], "--sm is for --target tensorrt and tensorrt-rtx, not for openvino: leave it out"),
        (["--weights", "fp12"], "--weights 'fp12' is unknown: use one of fp32, fp16, bf16, int8, int4"),
        (["--weights", "fp16", "--group-size", "64"], "--group-size 64 is for --weights int8, int4 and mixed, not for fp16"),
        (["--asymmetric"], "--asymmetric is for --weights int8, int4 and mixed, not for fp32"),
        (["--weights", "int4", "--quantisation-budget", "much"], "--quantisation-budget much must be a number of nats"),
        (["--validation-budget", "soon"], "--validation-budget soon must be a number of seconds"),
    ],
)
def test_words_that_mean_nothing(words: list[str], said: str, built: BuiltOnce, alize: Alize, tmp_path: Path) -> None:
    ran = alize("build", built("onnxruntime").checkpoint, "-o", tmp_path / "out", "-q", *words)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert said in ran.err
    assert list(tmp_path.iterdir()) == []


def test_the_library_refuses_the_same_words(built: BuiltOnce, tmp_path: Path) -> None:
    source = str(built("onnxruntime").checkpoint)
    with pytest.raises(UsageError, match="target 'abacus' can't be built yet: choose openvino or onnxruntime"):
        build(source, output=tmp_path / "out", target="abacus")
    with pytest.raises(UsageError, match="--weights fp12 is unknown: choose one of fp32, fp16, bf16, int8, int4"):
        build(source, output=tmp_path / "out", target="onnxruntime", weights="fp12")
    with pytest.raises(UsageError, match="--group-size 48 is unknown: choose one of 128, 64, 32 and channel"):
        build(source, output=tmp_path / "out", target="onnxruntime", weights="int4", group_size="48")
    assert list(tmp_path.iterdir()) == []


def test_names_of_precisions() -> None:
    assert [normal_weights(name) for name in ("f32", "fp32", "f16", "fp16", "bf16")] == ["fp32", "fp32", "fp16", "fp16", "bf16"]
    assert [normal_weights(name) for name in ("int4", "int8", "int4-g64-asym")] == ["int4-g128", "int8-channel", "int4-g64-asym"]
    assert normal_weights("int8", group_size="32", asymmetric=True) == "int8-g32-asym"
    assert [compiler_for(name).target for name in COMPILERS] == list(COMPILERS)


def test_a_pinned_digest(built: BuiltOnce) -> None:
    one = built("onnxruntime")
    load(one.folder, expect=one.manifest.digest).close()
    with pytest.raises(TamperedArtifact, match="not the pinned"):
        load(one.folder, expect="0" * 64)
    assert isinstance(read(one.folder), Manifest)
