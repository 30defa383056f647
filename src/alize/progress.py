"""How long work says where it is: stages with bytes or steps, drawn by rich on a terminal and as plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    import rich.progress

__all__ = ["PlainProgress", "Progress", "RichProgress", "SilentProgress", "byte_count", "opened", "reporter"]

_BYTES_FROM = 1_000_000


class Progress(Protocol):
    """One thing after another: a stage ends where the next begins."""

    def stage(self, name: str, *, total_bytes: int | None = None, steps: int | None = None) -> None:
        """Begins a stage of that many bytes or steps; neither where its length is not known."""
        ...

    def advance(self, n: int = 1) -> None:
        """Says that `n` more bytes or steps of the stage are done."""
        ...

    def note(self, text: str) -> None:
        """Says something worth keeping, in one line."""
        ...


class SilentProgress:
    """Says nothing."""

    def stage(self, name: str, *, total_bytes: int | None = None, steps: int | None = None) -> None:
        """See Progress."""

    def advance(self, n: int = 1) -> None:
        """See Progress."""

    def note(self, text: str) -> None:
        """See Progress."""


class PlainProgress:
    """A line where a stage begins and one where it ends: for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._name = ""
        self._began = 0.0
        self._done = 0
        self._bytes = False

    def stage(self, name: str, *, total_bytes: int | None = None, steps: int | None = None) -> None:
        """See Progress."""
        self.close()
        self._name, self._began, self._done, self._bytes = name, time.perf_counter(), 0, total_bytes is not None
        size = byte_count(total_bytes) if total_bytes is not None else f"{steps} steps" if steps is not None else ""
        self.note(f"{name} ({size}) ..." if size else f"{name} ...")

    def advance(self, n: int = 1) -> None:
        """See Progress."""
        self._done += n

    def note(self, text: str) -> None:
        """See Progress."""
        print(f"alize: {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the stage that is under way."""
        if self._name:
            done = f", {byte_count(self._done)}" if self._bytes and self._done else ""
            self.note(f"{self._name}: {time.perf_counter() - self._began:.1f} s{done}")
            self._name = ""


class RichProgress:
    """Bars on a terminal: what is done stays on the screen with the time that it took."""

    def __init__(self, bars: "rich.progress.Progress") -> None:
        self._bars = bars
        self._task: rich.progress.TaskID | None = None

    def stage(self, name: str, *, total_bytes: int | None = None, steps: int | None = None) -> None:
        """See Progress."""
        self.close()
        total = total_bytes if total_bytes is not None else steps
        self._task = self._bars.add_task(name, total=total, amount="", bytes=total_bytes is not None)
        self._show()

    def advance(self, n: int = 1) -> None:
        """See Progress."""
        if self._task is not None:
            self._bars.advance(self._task, n)
            self._show()

    def note(self, text: str) -> None:
        """See Progress."""
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Ends the stage that is under way: its bar is full and its clock stands."""
        if self._task is not None:
            task = self._bars.tasks[-1]
            total = task.total if task.total is not None else max(task.completed, 1)
            self._bars.update(self._task, total=total, completed=total)
            self._task = None

    def _show(self) -> None:
        task = self._bars.tasks[-1]
        shown = byte_count if task.fields["bytes"] else str
        parts = [shown(int(part)) for part in (task.completed, task.total) if part]
        self._bars.update(task.id, amount=" of ".join(parts))


@contextlib.contextmanager
def opened(stream: TextIO, *, quiet: bool = False) -> Iterator[Progress]:
    """The progress that suits `stream`: bars on a terminal, lines elsewhere, nothing when `quiet`."""
    if quiet:
        yield SilentProgress()
    elif stream.isatty():
        with _bars(stream) as bars:
            progress = RichProgress(bars)
            yield progress
            progress.close()
    else:
        plain = PlainProgress(stream)
        yield plain
        plain.close()


def reporter(progress: Progress) -> Callable[[str, int, int], None]:
    """A callback (stage, done, total) for work that counts by itself; totals of a million or more are bytes."""
    current: tuple[str, int] = ("", 0)

    def report(name: str, done: int, total: int) -> None:
        nonlocal current
        if name != current[0]:
            in_bytes = total >= _BYTES_FROM
            progress.stage(name, total_bytes=total if in_bytes else None, steps=None if in_bytes else total)
            current = (name, 0)
        if done > current[1]:
            progress.advance(done - current[1])
            current = (name, done)

    return report


def byte_count(size: int) -> str:
    """A size in decimal units: 269 MB."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if amount >= 100 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _bars(stream: TextIO) -> "rich.progress.Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(bar_width=24))
    console = Console(file=stream)
    return Progress(*columns, TextColumn("{task.fields[amount]}"), TimeElapsedColumn(), console=console, redirect_stdout=False)
