"""Exit codes, errors, and what goes to stdout and stderr."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alize import commands, errors
from alize.arguments import parse
from alize.errors import AlizeError

Alize = Callable[..., Any]


def start(*words: str | Path, code: str = "") -> "subprocess.Popen[str]":
    """The command line in a process of its own, after `code`."""
    script = f"import sys\n{code}\nfrom alize.cli import main\nsys.exit(main(sys.argv[1:]))"
    arguments = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command(body: str) -> str:
    """Code that puts `body` in the place of `alize targets`."""
    head = "import os, time\nfrom alize import commands\ndef stand_in(options, out):\n"
    return f"{head}{body}\ncommands.COMMANDS['targets'] = stand_in"


def leaves() -> list[type[AlizeError]]:
    return [getattr(errors, name) for name in errors.__all__ if getattr(errors, name) is not AlizeError]


@pytest.mark.parametrize("kind", leaves())
def test_every_error_is_one_line_and_its_exit_code(alize: Alize, monkeypatch: pytest.MonkeyPatch, kind: type[AlizeError]) -> None:
    def fail(*_: object) -> int:
        raise kind("no room\nfor 2 GB: \x1b[31mfree some")

    monkeypatch.setitem(commands.COMMANDS, "targets", fail)
    ran = alize("targets")
    assert (ran.code, ran.out) == (kind.exit_code, "")
    assert ran.err == "alize: error: no room for 2 GB: \\x1b[31mfree some\n"
    ran = alize("targets", "--json")
    message = "no room for 2 GB: \\x1b[31mfree some"
    assert ran.json == {"error": {"type": kind.__name__, "message": message, "exit_code": kind.exit_code}}


def test_help_tells_every_exit_code(alize: Alize) -> None:
    told = {int(code) for code in re.findall(r"\b\d+\b", alize("--help").out.split("exit codes:")[1])}
    assert told == {0, 1, 2, 130, 143, 129, 141} | {kind.exit_code for kind in leaves()}


def test_the_manual_tells_every_exit_code_and_option(alize: Alize) -> None:
    manual = Path(__file__).parents[2].joinpath("docs", "cli.md").read_text(encoding="utf-8")
    for code in {0, 1, 129, 130, 141, 143} | {kind.exit_code for kind in leaves()}:
        assert f"\n| {code} |" in manual
    for name in commands.COMMANDS:
        assert f"`alize {name}" in manual
        for option in re.findall(r"--[a-z][a-z-]+", alize(name, "--help").out):
            assert f"`{option}" in manual or option == "--help", f"{option} of alize {name}"


def test_every_command_has_options_and_the_other_way_round() -> None:
    for name in commands.COMMANDS:
        with pytest.raises(SystemExit):
            parse([name, "--help"])


def test_a_defect_is_one_line_and_1(alize: Alize, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setitem(commands.COMMANDS, "targets", fail)
    ran = alize("targets")
    assert ran.code == 1
    assert re.fullmatch(r"alize: error: ZeroDivisionError: division by zero \(a defect of alize.*\)\n", ran.err)
    assert "Traceback" in alize("targets", "--traceback").err


def test_wrong_usage_is_one_line_and_2(alize: Alize) -> None:
    ran = alize("run", "artifact")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "alize: error: the following arguments are required: PROMPT (see `alize run --help`)\n"
    assert alize("run", "artifact", "--json").json["error"]["exit_code"] == 2


def test_nothing_but_results_reaches_stdout() -> None:
    body = """
    os.write(1, b"native noise\\n")
    print("python noise", flush=True)
    os.system("echo noise of a child")
    out.write("result")
    return 0"""
    process = start("targets", code=command(body))
    out, err = process.communicate(timeout=60)
    assert out == "result"
    assert sorted(err.splitlines()) == ["native noise", "noise of a child", "python noise"]


def test_a_host_gets_its_stdout_back(alize: Alize, monkeypatch: pytest.MonkeyPatch) -> None:
    host = io.StringIO()
    monkeypatch.setattr(sys, "stdout", host)
    monkeypatch.setitem(commands.COMMANDS, "targets", lambda _, out: print("noise") or (out.write("result") and 0))
    from alize.cli import main

    assert main(["targets"]) == 0
    assert sys.stdout is host
    assert host.getvalue() == "result"


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by signal 15")]
)
def test_a_signal_is_one_line_and_its_code(number: signal.Signals, code: int, line: str, tmp_path: Path) -> None:
    """The stand-in works inside a Building, as a build does."""
    body = f"""
    from alize.artifact import Building
    from pathlib import Path
    with Building(Path({str(tmp_path / "out")!r})) as building:
        (building.folder / "weights.bin").write_bytes(b"1")
        print("ready", file=out, flush=True)
        for _ in range(600):  # not one long sleep: a signal just before it begins waits for its end
            time.sleep(0.1)"""
    process = start("targets", "--json", code=command(body))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"alize: error: {line}\n")
    assert json.loads(out)["error"]["exit_code"] == code
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_went_away() -> None:
    body = """
    print("ready", file=out, flush=True)
    input()
    for _ in range(10000):
        print("x" * 100, file=out)
    return 0"""
    with start("targets", code=command(body)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141


def test_a_reader_that_went_away_before_the_last_flush() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "alize", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60, env=buffered)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_python_dash_m() -> None:
    done = subprocess.run([sys.executable, "-m", "alize", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "alize 0.1.0\n"
