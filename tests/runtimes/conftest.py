"""The fixture of the conformance suite: one subject for each back-end and window layout."""

import pytest

from tests.runtimes.backends import SUBJECTS, Subject

_CASES = [(name, layout) for name, candidate in SUBJECTS.items() for layout in candidate.layouts]


@pytest.fixture(params=_CASES, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[1]))}")
def subject(request: pytest.FixtureRequest) -> Subject:
    """Every back-end with every layout."""
    name, layout = request.param
    return SUBJECTS[name].make(layout)
