"""What a user of alize-run meets: python tests/cpp/check_alize_run.py ALIZE_RUN ALIZE ARTIFACT

ARTIFACT is windowed: any prompt fits. Text, JSON and errors are those of `alize run`, but for the program's name.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Program:
    def __init__(self, command: list[str], artifact: str) -> None:
        self.command, self.artifact = command, artifact

    def __call__(self, *words: str, artifact: str | None = None, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        place = self.artifact if artifact is None else artifact
        return subprocess.run([*self.command, place, *words], input=stdin, capture_output=True, check=False)


def same_text(run: Program, alize: Program) -> None:
    """Text, pieces, figures that are no times, and what stdin gives."""
    sampled = ("--temperature", "0.9", "--top-k=20", "--seed", "18446744073709551615")
    for options in ((), sampled, ("--stop", "e", "--stop=ab"), ("--chat",)):
        words = ("Hello there", *options, "--max-new-tokens", "12")
        assert run(*words).stdout == alize(*words).stdout, words
        mine, theirs = records(run(*words, "--json")), records(alize(*words, "--json"))
        ends = [one.pop()["end"] for one in (mine, theirs)]
        assert mine == theirs, words
        assert ends[0].keys() == ends[1].keys()
        assert all(ends[0][name] == ends[1][name] for name in ("finish_reason", "prompt_tokens", "new_tokens")), ends
        assert ends[0]["prompt_seconds"] > 0 and ends[0]["seconds"] >= 0
    assert run("-", stdin=b"Hello\r\n").stdout == run("Hello").stdout
    assert run("--max-new-tokens", "3", "--", "--chat").stdout == alize("--max-new-tokens", "3", "--", "--chat").stdout


def refusals(run: Program, alize: Program, folder: Path) -> None:
    """The same exit codes, types and messages; nothing but JSON on stdout."""
    cases: list[tuple[tuple[str, ...], str | None]] = [
        (("Hello",), str(folder / "nowhere")),
        (("",), None),
        (("Hello", "--temperature", "-1"), None),
        (("Hello", "--top-p", "0"), None),
        (("Hello", "--seed", "18446744073709551616"), None),
        (("Hello", "--max-new-tokens", "0"), None),
        (("Hello", "--configuration", "fast"), None),
        (("Hello", "--device", "npu"), None),
        (("Hello", "--expect", "0" * 64), None),
        (("Hello", "--stop", ""), None),
    ]
    for words, artifact in cases:
        mine, theirs = run(*words, "--json", artifact=artifact), alize(*words, "--json", artifact=artifact)
        assert mine.returncode == theirs.returncode, (words, mine, theirs)
        ours, expected = records(mine)[-1]["error"], records(theirs)[-1]["error"]
        assert ours["message"].replace(" (see `alize-run --help`)", "") == expected["message"].replace(
            " (see `alize run --help`)", ""
        ), (ours, expected)
        assert (ours["type"], ours["exit_code"]) == (expected["type"], mine.returncode)
        assert mine.stderr.decode().splitlines()[-1] == f"alize: error: {ours['message']}"
    for wrong in (("more",), ("--fast",), ("--seed",), ("--system", "x"), ("--verify", "no")):
        assert run("Hello", *wrong).returncode == 2, wrong
    assert run("\udcff").returncode == 2  # not UTF-8
    assert records(run("Hello", "--backends", str(folder), "--json"))[-1]["error"]["exit_code"] == 7
    assert records(run("Hello", "--tokenizers", "/nowhere.so", "--json"))[-1]["error"]["exit_code"] == 7


def information(run: Program) -> None:
    for words in (("--help",), ("-h",), ("--version",), ("x", "--seed", "1", "--help")):
        done = subprocess.run([*run.command, *words], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(("usage: alize-run", "alize-run 0.")) and not done.stderr
    assert subprocess.run(run.command, capture_output=True, check=False).returncode == 2


def ends(run: Program) -> None:
    """Ctrl-C in a prompt that takes long, a reader that goes away, a full disk."""
    for words in ((), ("--json",)):
        with start(run, "-", *words, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(b"a long story, " * 200_000)
            process.stdin.close()
            assert process.stderr.readline().startswith(b"alize: ")  # from now on it is ready for Ctrl-C
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert process.stderr.read().endswith(b"alize: error: interrupted\n")
            text = process.stdout.read() if process.stdout is not None else b""
            assert not words or json.loads(text.splitlines()[-1])["error"]["type"] == "KeyboardInterrupt"
    for ignored in (False, True):
        with start(run, "Hello", ignore_sigpipe=ignored) as process:
            assert process.stdout is not None and process.stdout.read(1)
            process.stdout.close()
            assert process.wait(60) in (141, -signal.SIGPIPE)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*run.command, run.artifact, "Hello"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 4 and b"No space left" in done.stderr


def start(run: Program, *words: str, ignore_sigpipe: bool = False, stdin: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*run.command, run.artifact, *words],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        restore_signals=not ignore_sigpipe,  # Python ignores SIGPIPE
    )


def records(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def main(program: str, alize: str, artifact: str) -> None:
    os.environ.pop("ALIZE_BACKEND_PATH", None)
    run, python = Program([program], artifact), Program([alize, "run"], artifact)
    began = time.monotonic()
    same_text(run, python)
    refusals(run, python, Path(artifact).parent)
    information(run)
    ends(run)
    print(f"alize-run: what a user meets is as documented ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main(*sys.argv[1:])
