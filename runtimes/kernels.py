"""alize's own kernels for products with integer weights on CPUs, as an extension of OpenVINO: compiled here, for this OpenVINO.

The sources (runtimes/cpp/kernels) lie in the package, the headers in OpenVINO's. An extension works with the OpenVINO that it was
compiled for and no other, so it is compiled where it runs, once for each version: some seconds, kept under `cache_dir`.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from alize.errors import BackendUnavailable
from alize.runtimes.openvino_import import import_openvino
from alize.runtimes.processor import processor_name

__all__ = ["asked_for", "available", "cache_dir", "library", "missing"]

_SOURCES = Path(__file__).parent / "cpp" / "kernels"
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-w")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mf16c", "-mfma")
_OF_FILE = {  # what a file may use that not every processor has; the functions in it are called where the processor can
    "rounded.cpp": (*_AVX512, "-mavx512vnni"),
    "attention_few.cpp": _AVX512,
    **dict.fromkeys(("halved.cpp", "attention_many.cpp"), (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16")),
}


def available() -> str | None:
    """None where the kernels pay and can be compiled, else why not."""
    if "avx512_vnni" not in processor_name():
        return "the processor has no AVX512-VNNI"
    if _compiler() is None:
        return "there is no C++ compiler: install g++ or clang++, or name one in CXX"
    try:
        import_openvino()
    except ImportError as error:
        return str(error)
    import openvino

    folder = Path(openvino.__file__).parent
    return None if (folder / "include" / "openvino").is_dir() else f"{folder} has no headers: install openvino from PyPI"


def missing(options: Mapping[str, str | int | bool]) -> str | None:
    """Why a runtime configuration that asks for the kernels cannot run here, None where it can."""
    return available() if asked_for(options) else None


def asked_for(options: Mapping[str, str | int | bool]) -> bool:
    """Whether a runtime configuration has the kernels compute."""
    return options.get("kernels") == "alize"


def cache_dir() -> Path:
    """$ALIZE_KERNELS_DIR, or `alize/kernels` under $XDG_CACHE_HOME, or ~/.cache/alize/kernels."""
    own = os.environ.get("ALIZE_KERNELS_DIR")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "alize" / "kernels"


def library() -> Path:
    """The extension for the OpenVINO that is imported, compiled where it is not yet there.

    Raises BackendUnavailable where it cannot be (see `available`), with what the compiler said.
    """
    why = available()
    if why is not None:
        raise BackendUnavailable(f"alize's kernels cannot be used: {why}; the configuration `engine` does without")
    import openvino

    compiler = str(_compiler())
    place = cache_dir() / f"openvino-{openvino.__version__.split('-')[0]}-{_key(compiler)}" / "libalize_kernels.so"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".building-") as folder:
            _compile(compiler, Path(openvino.__file__).parent, Path(folder)).replace(place)
    return place


def _compiler() -> str | None:
    return next(
        (found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))), None
    )


def _key(compiler: str) -> str:
    """Of all that decides what comes out."""
    import openvino

    program = Path(compiler).resolve()
    stat = program.stat()  # asking it for its version would take as long as opening a small model
    itself = str(program), stat.st_size, stat.st_mtime_ns
    digest = hashlib.sha256(repr((openvino.__version__, itself, _FLAGS, _OF_FILE)).encode())
    for file in sorted(_SOURCES.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, engine: Path, folder: Path) -> Path:
    """The library, in that folder."""
    sources = sorted(_SOURCES.glob("*.cpp"))

    def compiled(source: Path) -> str:
        place = str(folder / f"{source.stem}.o")
        include = f"-I{engine / 'include'}"
        _run([compiler, *_FLAGS, *_OF_FILE.get(source.name, ()), include, "-c", str(source), "-o", place])
        return place

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    place = folder / "libalize_kernels.so"
    engine_libraries = [str(next(iter(sorted((engine / "libs").glob(f"{name}.so*"))))) for name in ("libopenvino", "libtbb")]
    _run([compiler, "-shared", "-o", str(place), *objects, *engine_libraries, f"-Wl,-rpath,{engine / 'libs'}"])
    return place


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = " / ".join(done.stderr.strip().splitlines()[:5]) or f"nothing, and exited with {done.returncode}"
        raise BackendUnavailable(f"alize's kernels cannot be compiled: `{command[0]}` said: {said}")
    return done.stdout
