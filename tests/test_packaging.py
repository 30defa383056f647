"""pyproject.toml against the tree: a folder that is not listed is silently left out of the wheel."""

import re
import tomllib
from pathlib import Path
from typing import Any

import alize

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed() -> None:
    mapping: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
    found = set()
    for package, folder in mapping.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            below = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *below)))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_stage_folders_are_flat() -> None:
    for stage in ("models", "export", "optimize"):
        below = {path.name for path in (ROOT / stage).iterdir() if path.is_dir()}
        assert below <= {"__pycache__"}, stage


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == alize.__version__


def test_a_file_is_not_named_after_a_package_it_imports() -> None:
    for path in ROOT.glob("*/*.py"):
        code = path.read_text(encoding="utf-8")
        assert not re.search(rf"^\s*(import|from) {re.escape(path.stem)}\b", code, flags=re.MULTILINE), path


def test_constraints_pin_every_requirement_of_the_environment() -> None:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    installed = ("build", "openvino", "onnxruntime", "dev")  # by `make env`
    wanted = PROJECT["project"]["dependencies"] + [line for extra in installed for line in extras[extra]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonical(line.partition("==")[0]) for line in lines if "==" in line}
    assert {canonical(re.split(r"[<>=!~ ]", line)[0]) for line in wanted} <= pinned


def folder_of(package: str, mapping: dict[str, str]) -> Path:
    """alize.validate -> src/alize/validate; the longest mapped parent decides, as in setuptools."""
    parent, _, child = package.rpartition(".")
    return ROOT / mapping[package] if package in mapping else folder_of(parent, mapping) / child


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_data_file_is_in_the_wheel() -> None:
    """What lies beside the code and isn't code: py.typed and the report's templates, and the kernels' sources, which are compiled
    where they run. The C++ library is no part of the wheel: it is built from the repository."""
    data: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]
    mapping: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
    packed = {path for package, globs in data.items() for pattern in globs for path in folder_of(package, mapping).glob(pattern)}
    found = {path for folder in mapping.values() for path in (ROOT / folder).rglob("*") if path.is_file()}
    library = ROOT / "runtimes" / "cpp"
    shipped = {path for path in found if not path.is_relative_to(library) or path.is_relative_to(library / "kernels")}
    assert {path for path in shipped if path.suffix not in (".py", ".pyc")} == packed
