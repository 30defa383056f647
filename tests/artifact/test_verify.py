import os
from collections.abc import Callable
from pathlib import Path

import pytest

from alize.artifact import MANIFEST, DeviceState, Manifest, read, verify
from alize.artifact import seal as seal_module
from alize.errors import AlizeError, ArtifactError, TamperedArtifact

DEVICE = {"backend": "fake", "cpu": "x"}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed; files are old enough for their time stamps to be trusted."""
    names: list[str] = []
    real = seal_module._sha256

    def spy(path: Path, advance: Callable[[int], object] | None) -> str:
        names.append(path.name)
        return real(path, advance)

    monkeypatch.setattr(seal_module, "_sha256", spy)
    monkeypatch.setattr(seal_module, "_RACY_NS", 0)
    return names


def load(folder: Path, *, full: bool = False) -> Manifest:
    manifest = read(folder)
    verify(folder, manifest, state=DeviceState(manifest.digest, DEVICE), full=full)
    return manifest


def test_a_sealed_artifact_verifies(artifact: Path) -> None:
    told: list[int] = []
    manifest = read(artifact)
    verify(artifact, manifest, advance=told.append)
    assert sum(told) == sum(entry.size for entry in manifest.files) > 5000


def test_one_changed_byte_in_every_sealed_file(artifact: Path) -> None:
    load(artifact)
    unsealed = set(read(artifact).unsealed)
    files = [path for path in artifact.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) == 6
    for path in files:
        name = path.relative_to(artifact).as_posix()
        sealed = path.read_bytes()
        for at in {0, len(sealed) // 2, len(sealed) - 1}:
            path.write_bytes(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
            if name in unsealed:
                load(artifact)
                continue
            with pytest.raises(ArtifactError, match=name) as caught:
                load(artifact)
            assert name == MANIFEST or "rebuild with `alize build org/modèle --target openvino`" in str(caught.value)
        path.write_bytes(sealed)
    load(artifact)


def test_every_byte_of_the_manifest(artifact: Path) -> None:
    path = artifact / MANIFEST
    sealed = path.read_bytes()
    for at in range(len(sealed)):
        path.write_bytes(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
        with pytest.raises(ArtifactError, match=MANIFEST):
            read(artifact)


@pytest.mark.parametrize("cut", [0, 1, 5119])
def test_a_truncated_file(artifact: Path, cut: int) -> None:
    path = artifact / "openvino_model.bin"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TamperedArtifact, match=rf"openvino_model.bin .*{cut} bytes, not 5120"):
        load(artifact)


def test_a_deleted_file(artifact: Path) -> None:
    (artifact / "build-record.json").unlink()
    load(artifact)
    (artifact / "empty.txt").unlink()
    with pytest.raises(TamperedArtifact, match=r"empty.txt is missing: rebuild with"):
        load(artifact)


def test_an_extra_file(artifact: Path) -> None:
    (artifact / "extra" / "more.bin").write_bytes(b"")
    with pytest.raises(TamperedArtifact, match=r"extra/more.bin is not part of the artifact: remove it"):
        load(artifact)


def test_an_extra_linked_folder(artifact: Path, tmp_path: Path) -> None:
    (artifact / "cache").symlink_to(tmp_path)
    with pytest.raises(TamperedArtifact, match="cache is not part of the artifact"):
        load(artifact)


def test_a_folder_in_the_place_of_a_file(artifact: Path) -> None:
    (artifact / "empty.txt").unlink()
    (artifact / "empty.txt").mkdir()
    with pytest.raises(TamperedArtifact, match=r"empty.txt is missing"):
        load(artifact)


def test_only_the_first_load_in_a_place_hashes(artifact: Path, tmp_path: Path, hashed: list[str]) -> None:
    load(artifact)
    assert len(hashed) == 5
    load(artifact)
    assert len(hashed) == 5
    artifact.rename(tmp_path / "elsewhere")
    load(tmp_path / "elsewhere")
    assert len(hashed) == 10
    load(tmp_path / "elsewhere", full=True)
    assert len(hashed) == 15


def test_only_the_touched_file_is_hashed_again(artifact: Path, hashed: list[str]) -> None:
    load(artifact)
    hashed.clear()
    (artifact / "tokenizer.json").touch()
    load(artifact)
    load(artifact)
    assert hashed == ["tokenizer.json"]


def test_a_file_put_back_under_its_old_time_stamp_is_hashed(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_module, "_RACY_NS", 0)
    load(artifact)
    path = artifact / "openvino_model.bin"
    stat, contents = path.stat(), path.read_bytes()
    path.write_bytes(b"\1" + contents[1:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size, inode and mtime agree: ctime does not
    with pytest.raises(TamperedArtifact, match=r"openvino_model\.bin"):
        load(artifact)


def test_a_failed_check_leaves_no_record(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_module, "_RACY_NS", 0)
    (artifact / "openvino_model.bin").write_bytes(b"\1" * 5120)
    for _ in range(2):
        with pytest.raises(TamperedArtifact):
            load(artifact)


def test_a_file_changed_a_moment_ago_is_not_trusted(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read(artifact)
    state = DeviceState(manifest.digest, DEVICE)
    monkeypatch.setattr(seal_module, "_RACY_NS", 10**18)
    verify(artifact, manifest, state=state)
    assert state.file_records(artifact) == {}
    monkeypatch.setattr(seal_module, "_RACY_NS", 0)
    verify(artifact, manifest, state=state)
    assert len(state.file_records(artifact)) == 5


def test_an_unreadable_file(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(seal_module, "_sha256", refuse)
    with pytest.raises(AlizeError, match=r"cannot be read: Permission denied"):
        load(artifact)
