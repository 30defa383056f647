"""What each command does: one library call, and its result as text or JSON. Heavy imports wait until here, or later."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from alize.errors import BackendUnavailable
from alize.progress import Progress, opened, reporter

__all__ = ["COMMANDS"]


def _build(options: argparse.Namespace, out: TextIO) -> int:
    from alize.inspect_artifact import describe, plain, verdict_code

    output = options.output or Path(f"{Path(options.source).resolve().name}-{options.target}")
    if options.dry_run:
        return _dry_run(options, out, output)
    with _needing(f"build,{options.target}"), _progress(options) as progress:
        from alize.building import build

        manifest = build(
            options.source,
            output=output,
            quantisation_budget=options.quantisation_budget,
            force=options.force,
            resume=not options.no_resume,
            progress=progress,
            **_sizing(options),
        )
    sealed = plain(manifest)
    _write(out, sealed, describe(output, manifest), options)
    return verdict_code(sealed["validation"])


def _sizing(options: argparse.Namespace) -> dict[str, Any]:
    """What a build and its estimate are both asked for."""
    from alize.engine_options import EngineOptions

    chosen = {} if options.weights is None else {"weights": options.weights}
    return chosen | {
        "target": options.target,
        "device": options.device,
        "experts": options.experts,
        "revision": options.revision,
        "adapter": options.adapter,
        "budget_seconds": options.validation_budget,
        "group_size": options.group_size,
        "bits": options.bits,
        "asymmetric": options.asymmetric,
        "calibrate": options.calibrate,
        "max_memory": options.max_memory,
        "engine": EngineOptions(sm=options.sm, capacity=options.capacity, batch=options.batch),
    }


def _dry_run(options: argparse.Namespace, out: TextIO, output: Path) -> int:
    with _needing(f"build,{options.target}"), _progress(options) as progress:
        from alize.building import estimate_build

        expected = estimate_build(options.source, output=output, progress=progress, **_sizing(options))
    _write(out, expected.as_dict(), expected.lines(), options)
    return 0


def _validate(options: argparse.Namespace, out: TextIO) -> int:
    from alize.inspect_artifact import describe_report, verdict_code

    with _needing("build"), _progress(options) as progress:
        from alize.validate import validate_artifact

        report = validate_artifact(
            options.artifact,
            source=options.source,
            adapter=options.adapter,
            budget_seconds=options.validation_budget,
            progress=progress,
        )
    _write(out, report, describe_report(report), options)
    return verdict_code(report)


def _inspect(options: argparse.Namespace, out: TextIO) -> int:
    from alize.artifact import read, verify
    from alize.inspect_artifact import describe, plain

    manifest = read(options.artifact, expect=options.expect)
    if options.verify == "full":
        with _progress(options) as progress:
            progress.stage("verify", total_bytes=sum(entry.size for entry in manifest.files))
            verify(options.artifact, manifest, full=True, advance=progress.advance)
    _write(out, plain(manifest), describe(options.artifact, manifest), options)
    return 0


def _run(options: argparse.Namespace, out: TextIO) -> int:
    from alize.run import run

    run(options, out)
    return 0


def _chat(options: argparse.Namespace, out: TextIO) -> int:
    from alize.run import chat

    chat(options, out)
    return 0


def _tune(options: argparse.Namespace, out: TextIO) -> int:
    from alize.inspect_artifact import describe_tuned
    from alize.runtimes.tuning import Workload, forget, tune

    if options.forget:
        forgotten = forget(options.artifact, device=options.device)
        _write(out, {"forgotten": forgotten}, ["forgotten" if forgotten else "nothing was chosen here"], options)
        return 0
    workload = Workload(prompt=options.prompt, new_tokens=options.new_tokens, rounds=options.rounds)
    with _progress(options) as progress:
        found = tune(options.artifact, device=options.device, workload=workload, listener=progress)
    _write(out, dataclasses.asdict(found), describe_tuned(found), options)
    return 0


def _targets(options: argparse.Namespace, out: TextIO) -> int:
    from alize.targets import show, survey

    report = survey()
    if options.json:
        print(json.dumps(report, indent=2), file=out)
    else:
        show(report, out)
    return 0


def _demo_model(options: argparse.Namespace, out: TextIO) -> int:
    with _needing("build"), _progress(options) as progress:
        from alize.models.demo_checkpoint import make_demo_checkpoint

        make_demo_checkpoint(options.folder, window=options.window, mixtral=options.mixtral, progress=reporter(progress))
    lines = [str(options.folder)]
    written = {"folder": str(options.folder), "window": options.window, "mixtral": options.mixtral}
    _write(out, written, lines, options)
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, TextIO], int]] = {
    "build": _build,
    "validate": _validate,
    "inspect": _inspect,
    "run": _run,
    "chat": _chat,
    "tune": _tune,
    "targets": _targets,
    "demo-model": _demo_model,
}


def _write(out: TextIO, value: dict[str, Any], lines: list[str], options: argparse.Namespace) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) if options.json else "\n".join(lines)
    print(text, file=out, flush=True)


def _progress(options: argparse.Namespace) -> contextlib.AbstractContextManager[Progress]:
    return opened(sys.stderr, quiet=options.quiet)


@contextlib.contextmanager
def _needing(extras: str) -> Iterator[None]:
    """An install without the packages of a stage says which extra has them."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "alize":
            raise
        raise BackendUnavailable(f"{error.name} is not installed here: pip install 'alize[{extras}]'") from error
