"""One small hub for the tests that look at a graph."""

import pytest

from tests.export.hubs import Tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", window=6, layers=2)
