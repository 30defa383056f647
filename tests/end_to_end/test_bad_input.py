"""Bad input to a build or a load: one line that names value and remedy, an exit code of its own, and nothing left behind."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from alize import cli
from alize.artifact import MANIFEST
from alize.build import build
from alize.compilers import COMPILERS
from alize.errors import AlizeError, ArtifactError, ContextExceeded, NotValidated, SessionError, TamperedArtifact, TokenOutOfRange
from alize.models.checkpoint import INDEX
from alize.runtimes.golden import GOLDEN, Case, read_golden, write_golden
from alize.runtimes.model import load
from tests.tiny import edit_config, edit_tensor, tiny_checkpoint


def drop_shard(folder: Path) -> None:
    next(folder.glob("model-00001*")).unlink()


def truncate_shard(folder: Path) -> None:
    shard = next(folder.glob("model-00001*"))
    shard.write_bytes(shard.read_bytes()[:-100])


def point_nowhere(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00009-of-00009.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


UP = "model.layers.{}.mlp.up_proj.weight"


def wrong_shape(folder: Path) -> None:
    edit_tensor(folder, UP.format(0), torch.zeros(55, 32))


def wrong_dtype(folder: Path) -> None:
    edit_tensor(folder, UP.format(0), torch.zeros(56, 32, dtype=torch.int8))


def not_a_number(folder: Path) -> None:
    spoilt = torch.zeros(56, 32)
    spoilt[1, 2] = torch.nan
    edit_tensor(folder, UP.format(1), spoilt)


def mistral_layout(folder: Path) -> None:
    (folder / "config.json").rename(folder / "params.json")


SOURCES: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing shard": (drop_shard, "missing shard"),
    "truncated shard": (truncate_shard, "truncated"),
    "index pointing nowhere": (point_nowhere, "model-00009-of-00009.safetensors"),
    "wrong shape": (wrong_shape, "model.layers.0.mlp.up_proj.weight has shape"),
    "wrong dtype": (wrong_dtype, "model.layers.0.mlp.up_proj.weight has dtype I8"),
    "NaN": (not_a_number, "model.layers.1.mlp.up_proj.weight holds nan"),
    "unknown architecture": (lambda folder: edit_config(folder, model_type="llama"), "model_type 'llama'"),
    "unknown config key": (lambda folder: edit_config(folder, frobnicate=1), "frobnicate"),
    "unknown rope": (lambda folder: edit_config(folder, rope_parameters={"rope_type": "yarn"}), "yarn"),
    "quantised": (lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq"}), "gptq"),
    "Mistral's own layout": (mistral_layout, "params.json"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_bad_checkpoint_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, said = SOURCES[name]
    source = tiny_checkpoint(tmp_path / "source", window=5)
    spoil(source)
    code = cli.main(["build", str(source), "--target", "onnxruntime", "-o", str(tmp_path / "out"), "-q"])
    assert code == 3
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("alize: error: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--weights", "int4"], 2, "int4"),
        (["--target", "tensorrt"], 2, "tensorrt"),
        (["--device", "gpu"], 7, "cpu"),
    ],
    ids=["weights", "target", "device"],
)
def test_what_is_not_there_is_refused(
    options: list[str], code: int, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    assert cli.main(["build", str(source), "-o", str(tmp_path / "out"), *options]) == code
    assert said in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("target", COMPILERS)
def test_a_full_disk_leaves_nothing(target: str, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk: the weights pass it in mid-build, also where the engine writes them."""
    source = tiny_checkpoint(tmp_path / "source", vocab_size=2048, hidden_size=128)
    script = (
        "import resource, sys; from alize import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = ["build", str(source), "--target", target, "-o", str(tmp_path / "out"), "-q"]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "disk" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.fixture(scope="module", params=COMPILERS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    source = tiny_checkpoint(folder / "source", window=0, layers=1, max_positions=96, tokenizer=True)
    build(str(source), output=folder / "artifact", target=request.param)
    return folder / "artifact"


def test_a_changed_byte_in_any_file_is_refused(artifact: Path, tmp_path: Path) -> None:
    files = sorted(path.name for path in artifact.iterdir() if path.name != "build-record.json")
    assert len(files) > 8
    for name in files:
        copy = shutil.copytree(artifact, tmp_path / name)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            load(copy)
        shutil.rmtree(copy)


def test_a_newer_schema_is_refused(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "newer")
    text = (copy / MANIFEST).read_text(encoding="utf-8")
    (copy / MANIFEST).write_text(text.replace('"schema": 1', '"schema": 2'), encoding="utf-8")
    with pytest.raises(ArtifactError, match="schema 2"):
        load(copy)


def test_a_partial_verdict_is_refused(artifact: Path, tmp_path: Path) -> None:
    source = artifact.parent / "source"
    target = json.loads((artifact / MANIFEST).read_text())["target"]["backend"]
    manifest = build(str(source), output=tmp_path / "partial", target=target, budget_seconds=0)
    assert manifest.validation.verdict == "partial"
    with pytest.raises(NotValidated, match="partial"):
        load(tmp_path / "partial")


def test_wrong_numbers_on_a_new_device_are_refused(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a verdict replays the golden prompts: here they say something that the artifact does not."""
    monkeypatch.setenv("ALIZE_STATE_DIR", str(tmp_path / "state"))
    with load(artifact):
        pass  # the right prompts pass, and the verdict is recorded
    copy = shutil.copytree(artifact, tmp_path / "copy")
    limits, cases = read_golden(copy / GOLDEN)
    wrong = [Case(case.prompt, case.positions, np.roll(case.log_probs, 1, axis=1)) for case in cases]
    write_golden(copy / GOLDEN, wrong, limits)
    with pytest.raises(TamperedArtifact):
        load(copy)
    _reseal(copy)
    with pytest.raises(NotValidated, match="alize validate"):
        load(copy)


def _reseal(folder: Path) -> None:
    """What a liar would do: hash again what was changed."""
    import dataclasses
    import hashlib

    from alize.artifact import Manifest

    manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    files = []
    for entry in manifest.files:
        content = (folder / entry.path).read_bytes()
        files.append(dataclasses.replace(entry, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    text = dataclasses.replace(manifest, files=tuple(files)).with_digest().to_json()
    (folder / MANIFEST).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("tokens", "error", "said"),
    [
        ([[5, 320]], TokenOutOfRange, "320"),
        ([[-1]], TokenOutOfRange, "-1"),
        ([[]], SessionError, "empty prompt"),
        ([[7] * 97], ContextExceeded, "97 tokens"),
    ],
    ids=["beyond the vocabulary", "negative", "empty", "beyond the maximum"],
)
def test_a_session_refuses_what_it_cannot_do(tokens: list[list[int]], error: type[AlizeError], said: str, artifact: Path) -> None:
    with load(artifact) as model, model.session() as session:
        with pytest.raises(error, match=said):
            session.append(tokens)
        assert session.position == 0
        assert session.append([[5, 6]]).shape == (1, 1, 320)


def test_a_device_that_is_not_there(artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(artifact), "Hello", "--device", "npu"]) == 7
    assert "cpu" in capfd.readouterr().err


@pytest.mark.parametrize("stage", ["export to ONNX", "lower to openvino", "reference", "artifact"])
def test_ctrl_c_in_mid_build_leaves_nothing(stage: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source", window=64, layers=4)
    command = [sys.executable, "-m", "alize", "build", str(source), "--target", "openvino", "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        began = any(line.startswith(f"alize: {stage}") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert began
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
