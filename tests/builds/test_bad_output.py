"""An output that cannot be written, a disk that fills up, Ctrl-C: one line, its exit code, and nothing half-made left behind."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alize.artifact import read
from alize.building import build
from alize.errors import OutputError
from alize.progress import SilentProgress
from alize.runtimes.model import load
from tests.builds.conftest import Alize, BuiltOnce

STAGES = [
    "hash the checkpoint",
    "export to ONNX",
    "lower to ",
    "inspect the compiled graph",
    "compare weights",
    "reference",
    "artifact",
    "greedy continuation",
    "seal",
]


class AtStage(SilentProgress):
    """Does something where a stage begins."""

    def __init__(self, stage: str, action: Callable[[], None]) -> None:
        self.waited, self.action, self.reached = stage, action, False

    def stage(self, name: str, *, total_bytes: int | None = None, steps: int | None = None) -> None:
        if name.startswith(self.waited) and not self.reached:
            self.reached = True
            self.action()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Limits the size of any file that this process writes, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def build_words(built: BuiltOnce, target: str, output: Path) -> list[str | Path]:
    return ["build", built(target).checkpoint, "--target", target, "-o", output, "--quiet"]


def test_an_output_that_exists_is_refused(built: BuiltOnce, alize: Alize, place: Path) -> None:
    for name, make in {"file": Path.touch, "folder": Path.mkdir}.items():
        make(place / name)
        ran = alize(*build_words(built, "onnxruntime", place / name))
        assert (ran.code, ran.err.count("\n")) == (4, 1)
        assert f"{place / name} exists: choose another output, or give --force to replace it" in ran.err
    assert sorted(path.name for path in place.iterdir()) == ["file", "folder"]


def test_force_replaces_an_artifact_and_nothing_else(built: BuiltOnce, alize: Alize, place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "letter.txt").write_text("dear")
    ran = alize(*build_words(built, "onnxruntime", place / "mine"), "--force")
    assert (ran.code, (place / "mine" / "letter.txt").read_text()) == (4, "dear")
    assert "--force replaces artifacts only" in ran.err
    words = [*build_words(built, "onnxruntime", place / "out"), "--validation-budget", "0"]
    assert alize(*words).code == 5
    assert read(place / "out").validation.verdict == "partial"
    assert alize(*build_words(built, "onnxruntime", place / "out"), "--force").code == 0
    assert read(place / "out").validation.verdict == "pass"
    assert sorted(path.name for path in place.iterdir()) == ["mine", "out"]


def test_a_forced_build_that_fails_leaves_the_old_artifact(built: BuiltOnce, place: Path) -> None:
    one = built("onnxruntime")
    build(str(one.checkpoint), output=place / "out", target="onnxruntime")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(str(one.checkpoint), output=place / "out", target="onnxruntime", force=True, progress=AtStage("seal", stop))
    load(place / "out", verify="full").close()
    assert sorted(path.name for path in place.iterdir()) == [".out.unfinished", "out"]


def test_an_output_that_cannot_be_written(built: BuiltOnce, alize: Alize, place: Path) -> None:
    (place / "file").touch()
    for output in (place / "file" / "out", Path("/proc/alize-test/out")):
        ran = alize(*build_words(built, "onnxruntime", output))
        assert (ran.code, ran.err.count("\n")) == (4, 1)
        assert f"{output} cannot be written (" in ran.err
        assert "choose an output in a folder that can be" in ran.err
    assert [path.name for path in place.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(built: BuiltOnce, alize: Alize, place: Path) -> None:
    place.chmod(0o555)
    ran = alize(*build_words(built, "onnxruntime", place / "out"))
    assert (ran.code, ran.err.count("\n")) == (4, 1)
    assert "cannot be written (Permission denied)" in ran.err


# target, stage from which on files may have no more than so many bytes (a float: of that file's), what hits the limit
FULL: list[tuple[str, str, str, int]] = [
    ("openvino", "lower", "openvino_model.bin", 1000),  # the scratch file, by onnx_ir
    ("openvino", "lower", "openvino_model.bin", 1),  # the engine's own serializer
    ("openvino", "inspect", "tokenizer.json", 1),
    ("openvino", "inspect", "openvino_tokenizer.xml", 1),  # the engine's again
    ("openvino", "greedy", "golden.safetensors", 1),
    ("openvino", "greedy", "report.html", 1),
    ("openvino", "seal", "manifest.json", 1),
    ("onnxruntime", "lower", "model.onnx", 1),
    ("onnxruntime", "lower", "model.onnx.data", 1),
    ("onnxruntime", "inspect", "genai_config.json", 1),  # the engine's profile, in the folder for temporary files
    ("onnxruntime", "seal", "manifest.json", 1),
]


@pytest.mark.parametrize(("target", "stage", "file", "short"), FULL)
def test_a_disk_that_fills_up(
    target: str, stage: str, file: str, short: int, built: BuiltOnce, place: Path, file_limit: Callable[[int], None]
) -> None:
    one = built(target)
    size = (one.folder / file).stat().st_size
    progress = AtStage(stage, lambda: file_limit(size - short))
    with pytest.raises(OutputError, match=r"free space( or choose another disk| there, or set TMPDIR)"):
        build(str(one.checkpoint), output=place / "deep" / "out", target=target, progress=progress)
    assert progress.reached
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_disk_that_fills_up_on_the_command_line(target: str, built: BuiltOnce, place: Path) -> None:
    """Room for config.json and tokenizer, not for the weights."""
    words = [str(word) for word in build_words(built, target, place / "out")]
    ran = subprocess.run(
        [sys.executable, "-m", "alize", *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (4, "", 1)
    assert ran.stderr.startswith("alize: error: disk full")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "stage"), [*(("openvino", stage) for stage in STAGES), ("onnxruntime", "lower to "), ("onnxruntime", "artifact")]
)
def test_ctrl_c_at_any_stage_leaves_nothing(target: str, stage: str, built: BuiltOnce, place: Path) -> None:
    """Of a build that is not to be resumed; tests/builds/test_resume.py has those that are."""
    progress, checkpoint = AtStage(stage, lambda: signal.raise_signal(signal.SIGINT)), str(built(target).checkpoint)
    with pytest.raises(KeyboardInterrupt):
        build(checkpoint, output=place / "deep" / "out", target=target, progress=progress, resume=False)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "stage", "number", "code", "said"),
    [
        ("openvino", "export to ONNX", signal.SIGINT, 130, "interrupted"),
        ("onnxruntime", "reference", signal.SIGINT, 130, "interrupted"),
        ("openvino", "artifact", signal.SIGTERM, 143, "stopped by signal 15"),
    ],
)
def test_a_signal_to_a_running_build(
    target: str, stage: str, number: int, code: int, said: str, built: BuiltOnce, place: Path
) -> None:
    """Sent to the process at the line that says what it is doing, so somewhere within that stage or the next."""
    words = [str(word) for word in build_words(built, target, place / "out") if word != "--quiet"]
    with subprocess.Popen([sys.executable, "-m", "alize", *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(f"alize: {stage}"):
                process.send_signal(number)
                break
        rest = process.stderr.read()
    # CPython ends by the signal itself, which a shell reports as 130, when Ctrl-C met code that was compiled from a string
    # (dataclasses, torch): it remembers that even after the exception was caught.
    assert process.returncode in {code, -number if number == signal.SIGINT else code}, rest
    last, kept = rest.splitlines()[-1], [path for path in place.iterdir() if path.name == ".out.unfinished"]
    assert last.startswith(f"alize: error: {said}")
    assert list(place.iterdir()) == kept
    assert (f"is kept in {place / '.out.unfinished'}: the same command goes on from there" in last) is bool(kept)
    assert bool(kept) or stage != "artifact"
