"""The file of a saved session: what it belongs to, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from alize.errors import SessionError
from alize.runtimes.saved_session import SavedSession, read_session, write_session

HERE = {"artifact": "ab12", "configuration": "{}", "version": "2026.4.1"}
SAVED = SavedSession(np.array([5, 9]), np.array([4, 4]), {"0.0.key": np.arange(6, dtype=np.uint8).reshape(2, 3)})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_session(tmp_path / "s", SAVED, HERE)
    found = read_session(tmp_path / "s", dict(reversed(HERE.items())))
    assert (found.positions.tolist(), found.cached.tolist()) == ([5, 9], [4, 4])
    assert found.held["0.0.key"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("name", HERE)
def test_it_belongs_to_one_artifact_configuration_and_device(name: str, tmp_path: Path) -> None:
    write_session(tmp_path / "s", SAVED, HERE)
    with pytest.raises(SessionError, match=f"was saved with {name} .*, this is other: .*append the tokens again"):
        read_session(tmp_path / "s", HERE | {name: "other"})


def test_a_device_that_says_more_of_itself(tmp_path: Path) -> None:
    write_session(tmp_path / "s", SAVED, HERE)
    with pytest.raises(SessionError, match="was saved with driver None, this is 7"):
        read_session(tmp_path / "s", HERE | {"driver": "7"})


def test_what_is_no_session(tmp_path: Path) -> None:
    write_session(tmp_path / "s", SAVED, HERE)
    whole = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(whole[:-1])
    with pytest.raises(SessionError, match="is not a saved session"):
        read_session(tmp_path / "s", HERE)
    with pytest.raises(SessionError, match="is not a saved session"):
        read_session(tmp_path / "nothing", HERE)
    (tmp_path / "s").write_bytes(whole.replace(b'"alize_session":"1"', b'"alize_session":"2"'))
    with pytest.raises(SessionError, match="is not a session of format 1, but '2': save it again"):
        read_session(tmp_path / "s", HERE)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    write_session(tmp_path / "s", SAVED, HERE)
    with pytest.raises(SessionError, match="cannot be written"):
        write_session(tmp_path / "no folder" / "s", SAVED, HERE)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
