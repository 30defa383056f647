import json
import logging
from pathlib import Path

import pytest

from alize.artifact import DeviceState, DeviceVerdict, read, state_dir, verify
from alize.artifact import state as state_module
from alize.artifact.state import FileRecord, fingerprint_key

DIGEST = "ab" * 32
DEVICE = {"backend": "openvino", "device": "CPU", "version": "2026.4.1"}


def test_where_the_state_lives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIZE_STATE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert state_dir() == tmp_path / "own"
    monkeypatch.delenv("ALIZE_STATE_DIR")
    assert state_dir() == tmp_path / "xdg" / "alize"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert state_dir() == tmp_path / "home" / ".local" / "state" / "alize"


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ALIZE_STATE_DIR")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(state_module, "_complained", set())
    DeviceState(DIGEST, DEVICE).record_verdict("default", DeviceVerdict("pass"))
    assert len(caplog.records) == 1


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    state = DeviceState(DIGEST, DEVICE)
    assert state.verdict("default") is None
    assert state.file_records(tmp_path) == {}
    state.record_verdict("default", DeviceVerdict("pass", {"kl_max": 1e-7}))
    state.record_files(tmp_path, {"a/b": FileRecord(1, 2, 3, 4)})
    again = DeviceState(DIGEST, dict(reversed(DEVICE.items())))
    assert again.verdict("default") == DeviceVerdict("pass", {"kl_max": 1e-7})
    assert again.verdict("paged") is None
    assert again.file_records(tmp_path) == {"a/b": FileRecord(1, 2, 3, 4)}
    assert again.file_records(tmp_path / "copy") == {}


def test_devices_and_artifacts_do_not_mix() -> None:
    DeviceState(DIGEST, DEVICE).record_verdict("default", DeviceVerdict("pass"))
    assert DeviceState(DIGEST, DEVICE | {"version": "2027.0"}).verdict("default") is None
    assert DeviceState("cd" * 32, DEVICE).verdict("default") is None


def test_the_layout_that_other_languages_read(own_state: Path, tmp_path: Path) -> None:
    """Pinned: docs/state.md gives this very example."""
    state = DeviceState(DIGEST, DEVICE)
    state.record_verdict("default", DeviceVerdict("skipped"))
    state.record_files(tmp_path, {"a": FileRecord(1, 2, 3, 4)})
    assert fingerprint_key(DEVICE) == "fb8d3730bf7920f0"
    assert json.loads((own_state / DIGEST / "fb8d3730bf7920f0" / "state.json").read_text()) == {
        "schema": 1,
        "fingerprint": DEVICE,
        "verdicts": {"default": {"verdict": "skipped", "figures": {}}},
        "files": {str(tmp_path): {"a": {"size": 1, "inode": 2, "mtime_ns": 3, "ctime_ns": 4}}},
    }
    assert [path.name for path in state.folder.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "contents", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "fingerprint": {}, "verdicts": 3, "files": {}}']
)
def test_a_broken_state_is_an_empty_one(contents: str) -> None:
    state = DeviceState(DIGEST, DEVICE)
    state.record_verdict("default", DeviceVerdict("pass"))
    (state.folder / "state.json").write_text(contents)
    again = DeviceState(DIGEST, DEVICE)
    assert again.verdict("default") is None
    again.record_verdict("default", DeviceVerdict("fail"))
    assert DeviceState(DIGEST, DEVICE).verdict("default") == DeviceVerdict("fail")


def test_a_state_of_another_fingerprint_is_not_believed() -> None:
    state = DeviceState(DIGEST, DEVICE)
    state.record_verdict("default", DeviceVerdict("pass"))
    path = state.folder / "state.json"
    path.write_text(path.read_text().replace("2026.4.1", "2026.4.2"))
    assert DeviceState(DIGEST, DEVICE).verdict("default") is None


def test_an_unwritable_state_works_and_says_so_once(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIZE_STATE_DIR", str(tmp_path / "file" / "below"))  # permission bits would not stop root
    monkeypatch.setattr("alize.artifact.seal._RACY_NS", 0)
    manifest = read(artifact)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            state = DeviceState(manifest.digest, DEVICE)
            verify(artifact, manifest, state=state)
            assert state.verdict("default") is None
            state.record_verdict("default", DeviceVerdict("pass"))
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text
    assert "ALIZE_STATE_DIR" in caplog.text


def test_a_full_disk_keeps_the_state_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    state = DeviceState(DIGEST, DEVICE)
    state.record_verdict("default", DeviceVerdict("pass"))

    def refuse(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", refuse)
    state.record_verdict("default", DeviceVerdict("fail"))
    assert DeviceState(DIGEST, DEVICE).verdict("default") == DeviceVerdict("pass")
    assert [path.name for path in state.folder.iterdir()] == ["state.json"]
