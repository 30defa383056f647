"""alize and the engines that users would pick instead, measured alternately on the same weights. From the repository's root:

    make peers                                            the rivals, in environments of their own (.peers/)
    python -m benchmarks.bench --prepare                  every subject's form of every model, with what making it took
    python -m benchmarks.bench                            measures; writes benchmarks/results/bench-MODEL.json, table and plots
    python -m benchmarks.bench --quick --models demo-int8 does everything work? figures of no use
    python -m benchmarks.bench --tables                   table and plots from the results that are there

Checkpoints and what was made of them are kept in --work. Nothing is converted while measuring.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks.bench.measure import Effort, Measuring
from benchmarks.bench.models import MODELS, BenchModel, chosen
from benchmarks.bench.prepare import prepare
from benchmarks.bench.subjects import SUBJECTS, Subject, rival_versions
from benchmarks.bench.tables import model_tables, write_tables
from benchmarks.measuring import RESULTS, write_result

QUICK = Effort(rounds=1, seconds=0, least=1, new=8, lengths=(16, 64))


def main() -> None:
    options = parsed()
    if options.tables:
        write_tables(options.results or RESULTS)
        return
    models = chosen(options.models)
    if options.prepare:
        for model in models:
            prepare_all(options.work, model, subjects_of(model, options.subjects), again=options.again, gigabytes=options.memory)
        return
    effort = QUICK if options.quick else Effort(rounds=options.rounds, seconds=60 * options.minutes)
    folder = options.results or (options.work / "quick" if options.quick else RESULTS)
    for model in models:
        print(f"{model.name}: {model.title}, {model.weights}", file=sys.stderr, flush=True)
        began, load = time.monotonic(), os.getloadavg()[0]
        subjects = subjects_of(model, options.subjects)
        result = Measuring(options.work, model, subjects, effort, threads=options.threads).run()
        about = {
            "load_before": round(load, 2),
            "measured_in_seconds": round(time.monotonic() - began),
            "rivals": rival_versions(),
        }
        write_result(f"bench-{model.name}", result | about, folder=folder, show=False)
        print("\n".join(model_tables(model.name, result | about)), flush=True)
    write_tables(folder)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[], help="(default: all that are usual)")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=[], help="(default: all that are usual)")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="checkpoints and forms (default: build/bench)")
    parser.add_argument("--rounds", type=int, default=15, help="of each measurement, at most (default: 15)")
    parser.add_argument(
        "--minutes", type=float, default=2.5, help="of measuring a model, but for starting its subjects (default: 2.5)"
    )
    parser.add_argument("--threads", type=int, default=2, help="processors that every subject sees (default: 2)")
    parser.add_argument("--results", type=Path, help="another folder than benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="a short round: does everything work? Kept in WORK/quick")
    parser.add_argument("--prepare", action="store_true", help="convert what is not converted yet, and measure nothing")
    parser.add_argument("--again", action="store_true", help="with --prepare: convert also what is there")
    parser.add_argument("--memory", type=float, metavar="GB", help="with --prepare: what a converting process may allocate")
    parser.add_argument("--tables", action="store_true", help="only table and plots, from the results that are there")
    return parser.parse_args()


def subjects_of(model: BenchModel, names: list[str]) -> list[Subject]:
    """Those named, by default the model's; without those whose environment is missing."""
    usual = [name for name, subject in SUBJECTS.items() if name not in model.without and (subject.usual or name in model.also)]
    chosen_ones = [SUBJECTS[name] for name in names or usual]
    for subject in chosen_ones:
        if not subject.needs.exists():
            print(f"{subject.name} is left out: {subject.needs} is missing, `make peers` makes it", file=sys.stderr)
    return [subject for subject in chosen_ones if subject.needs.exists()]


def prepare_all(work: Path, model: BenchModel, subjects: list[Subject], *, again: bool, gigabytes: float | None) -> None:
    for subject in subjects:
        record = prepare(work, model, subject, again=again, limit=None if gigabytes is None else round(gigabytes * 1e9))
        seconds = sum(step["seconds"] for step in record["steps"])
        peak = max((step["peak_mb"] for step in record["steps"]), default=0)
        outcome = record["failed"] or f"{record['size_mb']:.0f} MB"
        print(f"{model.name}, {subject.name}: {seconds:.0f} s, peak {peak:.0f} MB, {outcome}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
