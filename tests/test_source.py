"""Folders, the hub's cache, and a hub of our own on the loopback.

huggingface_hub reads its settings when it is imported, so each case that touches it runs in a process of its own.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alize.errors import SourceNotFound, UsageError
from alize.source import Resolved, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOBODY = "http://127.0.0.1:9"  # the discard port: nobody listens
FILES = {
    "config.json": b"{}",
    "model-00001-of-00001.safetensors": b"weights",
    "consolidated.safetensors": b"the weights again",
    "params.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"pickled",
    "README.md": b"# model",
}
SCRIPT = """
import json, sys
from alize.errors import AlizeError
from alize.source import resolve
calls = []
arguments = json.loads(sys.argv[1])
try:
    found = resolve(arguments["source"], revision=arguments["revision"], progress=lambda *call: calls.append(call))
    answer = {"kind": found.kind, "folder": str(found.folder), "repo": found.repo, "commit": found.commit, "calls": calls}
except AlizeError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer))
"""


def resolve_in_process(source: str, *, revision: str | None = None, **environment: str) -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps({"source": source, "revision": revision})],
        env={**kept, "HF_ENDPOINT": NOBODY, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    if "message" in answer:
        assert "\n" not in answer["message"]
    return answer


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """An HF_HOME with one snapshot of sea/breeze, under its branch main."""
    repository = tmp_path / "hf" / "hub" / "models--sea--breeze"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hf"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == Resolved("folder", tmp_path)


def test_a_folder_under_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~") == Resolved("folder", tmp_path)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --revision out"):
        resolve(str(tmp_path), revision="main")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceNotFound, match="is a file: give the folder"):
        resolve(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("source", ["/no/such/folder", "./nowhere", "a/b/c", ""])
def test_what_cannot_be_a_hub_id_is_a_missing_folder(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceNotFound, match="no such folder"):
        resolve(source)


# an unreachable hub is asked again for half a minute when the revision is a commit: not repeated here
@pytest.mark.parametrize(("revision", "offline"), [(None, "0"), (None, "1"), ("main", "1"), (COMMIT, "1")])
def test_the_cache_serves_without_a_network(cached: Path, revision: str | None, offline: str) -> None:
    answer = resolve_in_process("sea/breeze", revision=revision, HF_HOME=str(cached), HF_HUB_OFFLINE=offline)
    folder = cached / "hub" / "models--sea--breeze" / "snapshots" / COMMIT
    assert answer == {"kind": "hub", "folder": str(folder), "repo": "sea/breeze", "commit": COMMIT, "calls": []}


@pytest.mark.parametrize(
    ("repo", "revision", "offline", "wanted"),
    [
        ("sea/calm", None, "0", "sea/calm`"),
        ("sea/calm", None, "1", "sea/calm`"),
        ("sea/breeze", "v2", "0", "sea/breeze --revision v2`"),
        ("sea/breeze", COMMIT[::-1], "1", f"sea/breeze --revision {COMMIT[::-1]}`"),
    ],
)
def test_not_in_the_cache_says_what_to_run(cached: Path, repo: str, revision: str | None, offline: str, wanted: str) -> None:
    answer = resolve_in_process(repo, revision=revision, HF_HOME=str(cached), HF_HUB_OFFLINE=offline)
    assert answer["error"] == "SourceNotFound"
    assert "run `hf download " in answer["message"]
    assert wanted in answer["message"]
    assert str(cached / "hub") in answer["message"]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a snapshot needs: sea/breeze at main; sea/gated; everything else is unknown."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not path.startswith(("/api/models/sea/breeze/", "/sea/breeze/")):
            gated = "sea/gated" in path
            self.answer(403 if gated else 404, b"{}", {"X-Error-Code": "GatedRepo" if gated else "RepoNotFound"})
        elif path in ("/api/models/sea/breeze/revision/main", f"/api/models/sea/breeze/revision/{COMMIT}"):
            self.answer_json({"id": "sea/breeze", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
        elif path == f"/api/models/sea/breeze/tree/{COMMIT}":
            self.answer_json([{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in FILES.items()])
        elif path.startswith(f"/sea/breeze/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            self.answer(200, FILES[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_a_hub_id_is_fetched(hub: str, tmp_path: Path, revision: str | None) -> None:
    answer = resolve_in_process("sea/breeze", revision=revision, HF_HOME=str(tmp_path), HF_ENDPOINT=hub)
    assert (answer["kind"], answer["repo"], answer["commit"]) == ("hub", "sea/breeze", COMMIT)
    fetched = {path.name: path.read_bytes() for path in Path(answer["folder"]).iterdir()}
    wanted = FILES.keys() - {"consolidated.safetensors", "pytorch_model.bin", "README.md"}
    assert fetched == {name: FILES[name] for name in wanted}
    total = sum(len(FILES[name]) for name in wanted)
    assert answer["calls"][-1] == ["fetch", total, total]


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("sea/breeze", "v9", "sea/breeze has no revision v9: give a branch, a tag or a full commit hash"),
        ("sea/monster", None, "sea/monster is no folder, nor a repository that the hub shows you"),
        ("sea/gated", None, "sea/gated is gated: accept its terms on its hub page, then `hf auth login`"),
    ],
)
def test_what_the_hub_refuses(hub: str, tmp_path: Path, repo: str, revision: str | None, message: str) -> None:
    answer = resolve_in_process(repo, revision=revision, HF_HOME=str(tmp_path), HF_ENDPOINT=hub)
    assert answer["error"] == "SourceNotFound"
    assert answer["message"].startswith(message)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from alize.errors import BackendUnavailable

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'alize\[build\]'"):
        resolve("sea/breeze")
