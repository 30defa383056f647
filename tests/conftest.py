"""What every test relies on: nothing reaches a hub, nothing is written into the user's own state folder."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Before anything is collected: huggingface_hub reads its settings when it is imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a script's background jobs inherit that: Ctrl-C could not be tested
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # and nohup this one
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An $ALIZE_STATE_DIR of this test run's own."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIZE_STATE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def little_to_walk() -> Iterator[None]:
    """Caches of torch and sympy grow to a million objects; a build collects garbage at each of its stages, 1.4 s apiece then.
    What a file leaves behind is not looked at again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """The real 135M model with full attention; for reading only. Mark the test `demo`."""
    return _demo_checkpoint(window=0)


@pytest.fixture(scope="session")
def windowed_demo_checkpoint() -> Path:
    """The same with a window of 256 tokens."""
    return _demo_checkpoint(window=256)


@pytest.fixture(scope="session")
def mixtral_demo_checkpoint() -> Path:
    """Its Mixtral twin."""
    return _demo_checkpoint(window=0, mixtral=True)


def _demo_checkpoint(*, window: int, mixtral: bool = False) -> Path:
    """Kept in the cache between runs; every byte is checked each time."""
    from alize.models.demo_checkpoint import cache_dir, make_demo_checkpoint

    name = f"{'mixtral' if mixtral else 'demo'}-w{window}"
    return make_demo_checkpoint(cache_dir() / "tests" / name, window=window, mixtral=mixtral)
