"""What this machine can build and run, and the command that brings what is missing."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO

from alize import __version__

if TYPE_CHECKING:
    from alize.runtimes.registry import Backend

__all__ = ["show", "survey"]


def survey(*, backends: "Mapping[str, Backend] | None" = None) -> dict[str, Any]:
    """A report for `--json`: docs/cli.md describes its fields. Packages are looked up, engines are imported and asked."""
    from alize.runtimes.registry import BACKENDS

    build = _packages("build")
    targets = [_target(backend, build) for backend in (backends or BACKENDS).values() if backend.extra]
    return {
        "alize": __version__,
        "python": platform.python_version(),
        "build": {"ready": None not in build.values(), "packages": build, "remedy": _remedy(build, "build")},
        "targets": targets,
    }


def show(report: dict[str, Any], out: TextIO) -> None:
    """The report as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "build", "run", "devices", "versions", box=None, pad_edge=False)
    for target in report["targets"]:
        versions = ", ".join(f"{name} {version}" for name, version in target["versions"].items() if version)
        words = ["yes" if target[side] else "no" for side in ("build", "run")]
        table.add_row(target["name"], *words, ", ".join(target["devices"]), versions)
    console = Console(file=out, markup=False, highlight=False, width=None if out.isatty() else 200)
    console.print(table)
    build = report["build"]
    packages = ", ".join(f"{name} {version or '(missing)'}" for name, version in build["packages"].items())
    console.print(f"\nbuilding uses: {packages or 'nothing more'}")
    for target in report["targets"]:
        if target["missing"]:
            console.print(f"{target['name']}: {_missing(target)}")


def _target(backend: "Backend", build: dict[str, str | None]) -> dict[str, Any]:
    packages = _packages(backend.extra)
    why, devices = _ask(backend)
    lacking = [name for name, version in {**build, **packages}.items() if version is None]
    extras = f"build,{backend.extra}" if None in build.values() else backend.extra
    return {
        "name": backend.name,
        "build": not lacking,
        "run": why is None,
        "devices": devices,
        "versions": packages,
        "missing": ([why] if why else []) + lacking,
        "remedy": f"pip install 'alize[{extras}]'" if why or lacking else None,
    }


def _ask(backend: "Backend") -> tuple[str | None, list[str]]:
    """Why it cannot run (None: it can), and its devices."""
    from alize.errors import AlizeError
    from alize.runtimes.registry import backend_module

    try:
        devices = backend_module(backend.name, backends={backend.name: backend}).devices()
    except AlizeError as error:
        return str(error), []
    except Exception as error:  # noqa: BLE001  a broken driver or package is a finding here, whatever it raises
        return f"{type(error).__name__}: {error}", []
    return (None if devices else "no device of its kind here"), devices


def _packages(extra: str) -> dict[str, str | None]:
    """The packages of an extra with their installed versions, None for one that is not installed."""
    needed = importlib.metadata.requires("alize") or []
    marked = [requirement for requirement in needed if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", requirement)]
    names = [match.group() for requirement in marked if (match := re.match(r"[\w.\-]+", requirement))]
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _remedy(packages: dict[str, str | None], extra: str) -> str | None:
    return f"pip install 'alize[{extra}]'" if None in packages.values() else None


def _missing(target: dict[str, Any]) -> str:
    what = "; ".join(target["missing"])
    return f"{what}: {target['remedy']}" if target["remedy"] and target["remedy"] not in what else what
