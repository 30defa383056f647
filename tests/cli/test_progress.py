import io
import re

import pytest

from alize.progress import PlainProgress, Progress, RichProgress, SilentProgress, byte_count, opened, reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress) -> None:
    progress.stage("read", total_bytes=3_000_000)
    progress.advance(1_000_000)
    progress.advance(2_000_000)
    progress.stage("measure", steps=4)
    for _ in range(4):
        progress.advance()
    progress.note("worth [keeping]")
    progress.stage("think")


def test_plain_lines() -> None:
    stream = io.StringIO()
    with opened(stream) as progress:
        assert isinstance(progress, PlainProgress)
        work(progress)
    lines = [re.sub(r"\d+\.\d s", "T", line) for line in stream.getvalue().splitlines()]
    assert lines == [
        "alize: read (3.0 MB) ...",
        "alize: read: T, 3.0 MB",
        "alize: measure (4 steps) ...",
        "alize: worth [keeping]",
        "alize: measure: T",
        "alize: think ...",
        "alize: think: T",
    ]


def test_a_terminal_gets_bars_with_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with opened(stream) as progress:
        assert isinstance(progress, RichProgress)
        work(progress)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for text in ("read", "3.0 MB of 3.0 MB", "measure", "4 of 4", "worth [keeping]", "think", "✓", "0:00:00"):
        assert text in shown, text


def test_quiet_says_nothing() -> None:
    stream = Terminal()
    with opened(stream, quiet=True) as progress:
        assert isinstance(progress, SilentProgress)
        work(progress)
    assert stream.getvalue() == ""


def test_an_error_does_not_end_a_stage_as_if_it_were_done() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="x"), opened(stream) as progress:
        progress.stage("read")
        raise ValueError("x")
    assert stream.getvalue() == "alize: read ...\n"


def test_a_counting_callback_becomes_stages() -> None:
    calls: list[object] = []

    class Spy(SilentProgress):
        def stage(self, name: str, *, total_bytes: int | None = None, steps: int | None = None) -> None:
            calls.append((name, total_bytes, steps))

        def advance(self, n: int = 1) -> None:
            calls.append(n)

    report = reporter(Spy())
    for name, done, total in [
        ("a", 0, 3),
        ("a", 1, 3),
        ("a", 3, 3),
        ("b", 0, 2_000_000),
        ("b", 5, 2_000_000),
        ("b", 5, 2_000_000),
    ]:
        report(name, done, total)
    assert calls == [("a", None, 3), 1, 2, ("b", 2_000_000, None), 5]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (269_000_000, "269 MB"),
        (14_500_000_000, "14.5 GB"),
        (2 * 10**15, "2000.0 TB"),
    ],
)
def test_byte_counts(size: int, text: str) -> None:
    assert byte_count(size) == text
