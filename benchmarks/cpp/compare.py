"""libalize against Python's Session and openvino-genai, in one run, alternating. From the repository's root:

    benchmarks/cpp/prepare FOLDER                       builds libalize, the program decode, and the demo model's int8 artifact
    python -m benchmarks.cpp.compare FOLDER             five minutes at most; keeps benchmarks/results/cpp.json

`prepare` and `make peers` make what is needed: openvino-genai is left out where .peers/openvino isn't there. Decoding is timed in
processes that stay: seconds between the first and the last of NEW tokens, for one, and what all threads computed meanwhile, which
other work on the machine hardly changes. Cold starts are timed from the start of a process to its first token, the device's
verdict known and the files in the page cache. Memory beyond the weights is what is resident after decoding,
less openvino_model.bin.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import alternate, bandwidth, summaries, write_result
from benchmarks.subjects.process import Server, once

PEER = Path(".peers/openvino/bin/python")
PROMPT, NEW, TOGETHER = 32, 48, 8
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--artifact", type=Path, help="another than FOLDER/artifact")
    parser.add_argument("--rounds", type=int, default=21, help="of decoding; a fifth as many of the rest")
    parser.add_argument("--peer", type=Path, default=PEER, help="a python that has openvino-genai")
    parser.add_argument("--name", default="cpp", help="of the file in benchmarks/results")
    options = parser.parse_args()
    bench = Bench(options.folder, options.artifact or options.folder / "artifact", options.peer, options.rounds)
    write_result(options.name, bench.run())


class Bench:
    def __init__(self, folder: Path, artifact: Path, peer: Path, rounds: int) -> None:
        self.folder, self.artifact, self.rounds = folder, artifact, rounds
        self.environment = os.environ | {"PYTHONPATH": ".", "ALIZE_STATE_DIR": str(folder.absolute() / "state")}
        self.manifest: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
        self.commands = {
            "C++": [str(folder / "decode"), str(artifact)],
            "Python": [sys.executable, "-m", "benchmarks.subjects.alize_session", str(artifact)],
        }
        if peer.exists():
            genai = [str(peer), "-m", "benchmarks.subjects.openvino_genai", str(artifact)]
            self.commands["openvino-genai, its defaults"] = [*genai, "{}"]
            self.commands["openvino-genai, our settings"] = [*genai, json.dumps(self._settings())]

    def run(self) -> dict[str, Any]:
        first = once([*self.commands["C++"], "cold", str(PROMPT)], self.environment | self._new_state())
        once([*self.commands["C++"], "cold", str(PROMPT)], self.environment)  # knows the verdict from now on
        return {
            "what": f"{self.manifest['source']['architecture']}, weights {self.manifest['target']['weights']}, prompt {PROMPT}",
            "bandwidth_gb_s": round(bandwidth() / 1e9, 1),
            "seconds_to_first_token": self._cold(),
            "seconds_of_the_first_load_ever": round(first["cold_start_seconds"], 2),
            **self._decoding(),
            "libraries_mb": self._sizes(),
        }

    def _settings(self) -> dict[str, str | int]:
        from alize.runtimes.openvino_runner import compile_properties

        return compile_properties(self.manifest["configurations"][0]["options"])

    def _new_state(self) -> dict[str, str]:
        """A state folder that no run has seen: everything is hashed and replayed."""
        return {"ALIZE_STATE_DIR": str(self.folder.absolute() / f"state-{os.getpid()}")}

    def _cold(self) -> dict[str, Any]:
        def start(command: list[str]) -> Callable[[], float]:
            return lambda: once([*command, "cold", str(PROMPT)], self.environment)["cold_start_seconds"]

        return alternate({name: start(command) for name, command in self.commands.items()}, rounds=max(3, self.rounds // 5))

    def _decoding(self) -> dict[str, Any]:
        servers = {name: Server([*command, "serve"], self.environment) for name, command in self.commands.items()}
        weights = (self.artifact / "openvino_model.bin").stat().st_size / MB
        for server in servers.values():
            server.ask(PROMPT, NEW)  # packs the weights
        computing: dict[str, list[float]] = {name: [] for name in servers}

        def decode(name: str) -> Callable[[], float]:
            def measure() -> float:
                figures = servers[name].ask(PROMPT, NEW)
                computing[name].append(figures["token_processor_seconds"])
                return figures["token_seconds"]

            return measure

        found: dict[str, Any] = {
            "seconds_a_token": alternate({name: decode(name) for name in servers}, rounds=self.rounds),
            "processor_seconds_a_token": summaries(computing),
        }
        memory = {name: self._memory(server, weights) for name, server in servers.items()}
        alone = {name: servers.pop(name) for name in list(servers) if name.startswith("openvino-genai")}
        for server in alone.values():
            server.close()
        found[f"tokens_a_second_of_{TOGETHER}_sessions"] = alternate(
            {
                name: lambda server=server: server.ask(PROMPT, NEW, TOGETHER)["tokens_per_second"]
                for name, server in servers.items()
            },
            rounds=max(3, self.rounds // 7),
        )
        found["memory_mb"] = {"weights": round(weights, 1), **memory}
        for name, server in servers.items():
            found["memory_mb"][f"{name}, {TOGETHER} sessions"] = self._memory(server, weights)
            server.close()
        return found

    @staticmethod
    def _memory(server: Server, weights: float) -> dict[str, float]:
        figures = server.ask(PROMPT, 2)
        resident = {name: round(figures[name], 1) for name in ("rss_mb", "anonymous_mb", "peak_mb")}
        return resident | {"beyond_weights_mb": round(figures["rss_mb"] - weights, 1)}

    def _sizes(self) -> dict[str, float]:
        """What C++ brings along, stripped as it is installed."""
        files = {file.resolve() for file in (self.folder / "installed").rglob("*") if file.is_file()}
        chosen = [file for file in files if ".so" in file.name or file.name == "alize-run"]
        return {file.name: round(file.stat().st_size / MB, 2) for file in sorted(chosen)}


if __name__ == "__main__":
    main()
