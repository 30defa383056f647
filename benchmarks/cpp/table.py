"""The table of docs/cpp.md from what compare.py kept: python -m benchmarks.cpp.table [benchmarks/results/cpp.json]"""

import json
import sys
from pathlib import Path
from typing import Any

ROWS = {
    "decoding, ms a token": ("seconds_a_token", 1000, 1),
    "computed meanwhile by all threads, ms a token": ("processor_seconds_a_token", 1000, 1),
    "start of the process to the first token, s": ("seconds_to_first_token", 1, 2),
    "8 sessions at once, tokens/s in all": ("tokens_a_second_of_8_sessions", 1, 1),
}


def main(file: Path) -> None:
    found: dict[str, Any] = json.loads(file.read_text())
    names = list(found["memory_mb"])
    subjects = [name for name in names if name != "weights" and not name.endswith(" sessions")]
    print(f"| {found['what']} | {' | '.join(subjects)} | C++ to Python, paired |")
    print("|---" * (len(subjects) + 2) + "|")
    for title, (key, scale, digits) in ROWS.items():
        part = found[key]
        values = [f"{part[name]['median'] * scale:.{digits}f}" if name in part else "" for name in subjects]
        print(f"| {title} | {' | '.join(values)} | {part['C++ / Python']['median']:.2f} |")
    memory = found["memory_mb"]
    for title, figure in (("resident, MB", "rss_mb"), ("of it beyond the weights, MB", "beyond_weights_mb")):
        print(f"| {title} | {' | '.join(f'{memory[name][figure]:.0f}' for name in subjects)} | |")
    print(f"\nWith 8 sessions C++ holds {memory['C++, 8 sessions']['rss_mb']:.0f} MB. The first load ever, all files")
    print(f"hashed and the golden prompts replayed, took {found['seconds_of_the_first_load_ever']:.1f} s to the first token.")
    print(f"Libraries, MB: {', '.join(f'{name} {size}' for name, size in found['libraries_mb'].items())}.")
    print(f"Load average {found['machine']['load_average']}, {found['bandwidth_gb_s']} GB/s of memory bandwidth.")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/cpp.json"))
