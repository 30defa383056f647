"""Each subject's form of a checkpoint, made once and kept in the work folder with what making it took."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench.models import BenchModel
from benchmarks.bench.subjects import SUBJECTS, Paths, Subject

__all__ = ["environment", "folder_of", "last_line", "prepare", "record_of"]

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


def environment(state: Path) -> dict[str, str]:
    """Of every subject: our packages, a state folder of its own, no network, and no thread count left over from a shell."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_THREADS")}
    here = {"PYTHONPATH": ".", "ALIZE_STATE_DIR": str(state.absolute()), "HF_HUB_OFFLINE": "1"}
    return kept | here


def beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


def folder_of(work: Path, model: BenchModel, subject: Subject) -> Path:
    """What the subject opens."""
    name = subject.shared or subject.name
    return work / model.name / name.replace(", ", "-").replace(" ", "-")


def record_of(work: Path, model: BenchModel, subject: Subject) -> dict[str, Any] | None:
    """What `prepare` kept: the commands with their seconds and peak_mb, the size, and why it failed if it did."""
    file = beside(folder_of(work, model, subject), "json")
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def prepare(work: Path, model: BenchModel, subject: Subject, *, again: bool = False, limit: int | None = None) -> dict[str, Any]:
    """Makes it unless it is there, or was tried. limit: bytes that a converting process may allocate."""
    if subject.shared:
        return prepare(work, model, SUBJECTS[subject.shared], limit=limit)
    known = record_of(work, model, subject)
    if known is not None and not again:
        return known
    folder = folder_of(work, model, subject)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = model.make_checkpoint(work)
    paths = Paths(checkpoint, _with_tokenizer(work, model), folder)
    if not subject.name.startswith("alize"):
        folder.mkdir()
    log = beside(folder, "log")
    steps = []
    failed = None
    for command in subject.convert(model, paths):
        step, failed = _measured(command, environment(work / "state"), log, limit)
        steps.append(step)
        if failed:
            break
    record = {"steps": steps, "failed": failed}
    if not failed:
        for rest in ("cache", "float"):
            shutil.rmtree(folder / rest, ignore_errors=True)
        record["size_mb"] = round(_size(folder) / 1e6, 1)
        if (folder / "build-record.json").exists():
            record["validate_seconds"] = json.loads((folder / "build-record.json").read_text())["measured"]["validate_seconds"]
    beside(folder, "json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _measured(
    command: Sequence[str], variables: Mapping[str, str], log: Path, limit: int | None
) -> tuple[dict[str, Any], str | None]:
    """Runs it; the last line of what it wrote where it failed. peak_mb: the most that a process of it had resident."""
    limited = ["prlimit", f"--data={limit}", *command] if limit else command
    began = time.perf_counter()
    with log.open("ab") as stream:
        process = subprocess.Popen(limited, stdout=stream, stderr=subprocess.STDOUT, env=variables)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    step = {
        "command": " ".join(command),
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6, 1),
    }
    if process.returncode == 0:
        return step, None
    return step, f"exit code {process.returncode}: {last_line(log)}"


def last_line(log: Path) -> str:
    """Where programs say why they ended."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def _with_tokenizer(work: Path, model: BenchModel) -> Path:
    """A checkpoint of random weights beside the demo model's tokenizer: only its numbers of tokens are ever used."""
    checkpoint = model.checkpoint_folder(work)
    if not model.random:
        return checkpoint
    folder = checkpoint.with_name(f"{checkpoint.name}-tokenizer")
    folder.mkdir(exist_ok=True)
    demo = _demo(work)
    files = list(checkpoint.iterdir()) + [demo / name for name in TOKENIZER]
    for file in files:
        target = folder / file.name
        target.unlink(missing_ok=True)
        target.symlink_to(file.absolute())
    return folder


def _demo(work: Path) -> Path:
    from benchmarks.bench.models import MODELS

    return MODELS["demo-int8"].make_checkpoint(work)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
