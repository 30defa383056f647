import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from alize.artifact import MANIFEST, Building, Manifest, folders, read, verify
from alize.errors import LoweringFailed, OutputError

Make = Callable[..., Manifest]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(body: str, output: Path) -> subprocess.Popen[str]:
    """A process that runs `body` with `output` and `Building` at hand."""
    script = "import sys, time, os\nfrom pathlib import Path\nfrom alize.artifact import Building\noutput = Path(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", script + textwrap.dedent(body), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


STUCK = """
    with Building(output) as building:
        (building.folder / "weights.bin").write_bytes(b"1" * 100)
        print("ready", flush=True)
        for _ in range(600):  # not one long sleep: a signal just before it begins waits for its end
            time.sleep(0.1)
"""


def test_what_is_sealed(tmp_path: Path, make: Make) -> None:
    written = make(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert read(tmp_path / "out") == written
    assert [entry.path for entry in written.files] == [
        "empty.txt", "extra/golden.safetensors", "openvino_model.bin", "openvino_model.xml", "tokenizer.json"
    ]  # fmt: skip
    assert written.unsealed == ("build-record.json",)
    verify(tmp_path / "out", written)


def test_two_seals_of_the_same_content_are_the_same_bytes(tmp_path: Path, make: Make) -> None:
    make(tmp_path / "one")
    time.sleep(0.01)
    make(tmp_path / "a" / "longer" / "path")
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "a" / "longer" / "path" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_path_of_this_machine_is_not_sealed(tmp_path: Path, manifest: Manifest) -> None:
    for place in ("{folder}/model.onnx", "alize build {parent} --target openvino", "{parent}"):
        with pytest.raises(ValueError, match="a path of this machine"), Building(tmp_path / "out") as building:
            rebuild = place.format(folder=building.folder, parent=tmp_path)
            building.seal(replace(manifest, rebuild=rebuild))
    assert names(tmp_path) == []


def test_a_hub_name_that_ends_like_a_folder_is_sealed(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tail = str(tmp_path)
    with Building(tmp_path / "out") as building:
        building.seal(replace(manifest, rebuild=f"alize build org{tail} {tail}-other"))
    assert read(tmp_path / "out").rebuild.startswith("alize build org/")


def test_a_link_is_not_sealed(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="link"), Building(tmp_path / "out") as building:
        (building.folder / "weights.bin").symlink_to("/etc/hostname")
        building.seal(manifest)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [LoweringFailed("x"), ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_leaves_nothing_and_passes_through(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, Building(tmp_path / "deep" / "er" / "out") as building:
        (building.folder / "weights.bin").write_bytes(b"1")
        raise error
    assert caught.value is error
    assert names(tmp_path) == []


def test_leaving_without_a_seal_leaves_nothing(tmp_path: Path) -> None:
    with Building(tmp_path / "out") as building:
        (building.folder / "weights.bin").write_bytes(b"1")
    assert names(tmp_path) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(STUCK, tmp_path / "out")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(names(tmp_path)) == 1
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert names(tmp_path) == []


def test_an_impatient_second_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    body = """
    import shutil
    real = shutil.rmtree
    def slow(*arguments, **options):
        print("removing", flush=True)
        time.sleep(0.5)
        real(*arguments, **options)
    shutil.rmtree = slow
    with Building(output):
        print("ready", flush=True)
        for _ in range(600):  # not one long sleep: a signal just before it begins waits for its end
            time.sleep(0.1)
    """
    process = start(body, tmp_path / "out")
    assert process.stdout is not None
    for line in ("ready\n", "removing\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert names(tmp_path) == []


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with Building(tmp_path / "out"):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path, make: Make) -> None:
    process = start(STUCK, tmp_path / "out")
    assert process.stdout is not None
    process.stdout.readline()
    live = names(tmp_path)
    with Building(tmp_path / "out"):
        assert live[0] in names(tmp_path)  # alive: not ours to remove
    process.kill()
    process.communicate(timeout=30)
    assert names(tmp_path) == live
    (tmp_path / ".other.building-1").mkdir()
    (tmp_path / ".out.building-notes").mkdir()
    make(tmp_path / "out")
    assert names(tmp_path) == [".other.building-1", ".out.building-notes", "out"]


def test_a_dead_build_that_had_our_process_number(tmp_path: Path, make: Make) -> None:
    """Containers start every process with the same number, on a disk that they share."""
    stale = tmp_path / f".out.building-{os.getpid()}"
    stale.mkdir()
    (stale / "weights.bin").write_bytes(b"1")
    assert "weights.bin" not in {entry.path for entry in make(tmp_path / "out").files}


def test_a_live_build_whose_process_number_is_not_seen_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(STUCK, tmp_path / "out")
    assert process.stdout is not None
    process.stdout.readline()
    monkeypatch.setattr(folders, "_alive", lambda _: False)
    with Building(tmp_path / "out"):
        assert len(names(tmp_path)) == 2
    process.terminate()
    process.communicate(timeout=30)


def test_two_builds_of_one_output_in_one_process(tmp_path: Path) -> None:
    with Building(tmp_path / "out"):
        with pytest.raises(OutputError, match="being built by this process"), Building(tmp_path / "out"):
            pass
        assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["artifact", "folder", "empty", "file", "dangling link"])
def test_an_existing_output_is_refused(tmp_path: Path, make: Make, kind: str) -> None:
    output = tmp_path / "out"
    if kind == "artifact":
        make(output)
    elif kind in ("folder", "empty"):
        output.mkdir()
        if kind == "folder":
            (output / "thesis.tex").write_text("years of work")
    elif kind == "file":
        output.write_text("")
    else:
        output.symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists: choose another output, or give --force"), Building(output):
        pass
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file", "foreign manifest", "link"])
def test_force_replaces_nothing_but_artifacts(tmp_path: Path, make: Make, kind: str) -> None:
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("")
    elif kind == "link":
        make(tmp_path / "real")
        output.symlink_to("real")
    else:
        output.mkdir()
        (output / MANIFEST if kind == "foreign manifest" else output / "thesis.tex").write_text('{"name": "a web app"}')
    before = names(tmp_path)
    with pytest.raises(OutputError, match="is no artifact"), Building(output, overwrite=True):
        pass
    assert names(tmp_path) == before


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces_at_the_end_and_in_one_step(
    tmp_path: Path, make: Make, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    output = tmp_path / "out"
    old = make(output)
    with pytest.raises(LoweringFailed), Building(output, overwrite=True) as building:
        raise LoweringFailed("x")
    with Building(output, overwrite=True) as building:
        (building.folder / "new.bin").write_bytes(b"new")
        verify(output, read(output))
        assert read(output) == old
        new = building.seal(manifest)
        verify(output, new)
    assert names(tmp_path) == ["out"]
    assert names(output) == [MANIFEST, "new.bin"]
    assert read(output) == new != old


def test_force_replaces_a_broken_artifact_and_an_empty_folder(tmp_path: Path, make: Make) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "openvino_model.bin").write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    for name in ("out", "empty"):
        verify(tmp_path / name, make(tmp_path / name, overwrite=True))


def test_a_swap_that_fails_puts_the_old_artifact_back(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make(tmp_path / "out")
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(str(os.getpid())):
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OutputError, match="Input/output error"):
        make(tmp_path / "out", overwrite=True)
    assert names(tmp_path) == ["out"]
    verify(tmp_path / "out", old)


def test_an_output_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(OutputError, match="exists"), Building(tmp_path / "out") as building:
        (tmp_path / "out").mkdir()
        building.seal(manifest)
    assert names(tmp_path) == ["out"]


def test_a_build_in_a_thread(tmp_path: Path, make: Make) -> None:
    thread = threading.Thread(target=make, args=(tmp_path / "out",))
    thread.start()
    thread.join()
    verify(tmp_path / "out", read(tmp_path / "out"))
