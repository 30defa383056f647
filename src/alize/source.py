"""Where a checkpoint comes from: a folder on this machine, or a repository of the Hugging Face hub.

The hub's own cache and settings are honoured (HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_TOKEN): what `hf download` fetched is
found.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alize.errors import BackendUnavailable, SourceNotFound, UsageError

__all__ = ["Progress", "Resolved", "resolve"]

Progress = Callable[[str, int, int], None]
"""progress("fetch", bytes done, bytes in all)"""

# Everything `Checkpoint` reads or hands on. Not consolidated*: Mistral's repositories hold their weights twice. params.json
# comes along so that a repository with nothing else is refused for what it is.
FETCHED = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "params.json",
]


@dataclass(frozen=True)
class Resolved:
    """A checkpoint folder and where it came from; `repo` and `commit` are None for a plain folder."""

    kind: Literal["folder", "hub"]
    folder: Path
    repo: str | None = None
    commit: str | None = None


def resolve(source: str, *, revision: str | None = None, progress: Progress | None = None) -> Resolved:
    """The folder that `source` names: itself when it exists, else a hub id (`organisation/name`), fetched unless it is cached.

    `revision` is a branch, tag or full commit hash of the repository (default: main); `commit` of the result is the full hash.

    Errors: SourceNotFound (no such folder, repository or revision, no access, no network), UsageError (a revision of a plain
    folder), BackendUnavailable (a hub id without the `build` extra).
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():  # Path("") is the current folder
        if revision is not None:
            raise UsageError(f"{source} is a folder and has no revision {revision}: leave --revision out, or give a hub id")
        return Resolved("folder", folder)
    if folder.is_file():
        raise SourceNotFound(f"{source} is a file: give the folder it lies in")
    if not _may_be_hub_id(source):
        raise SourceNotFound(f"{source!r}: no such folder; give a Hugging Face checkpoint folder or a hub id (organisation/name)")
    snapshot = _fetch(source, revision, progress)
    return Resolved("hub", snapshot, source, snapshot.name)


def _may_be_hub_id(source: str) -> bool:
    try:
        from huggingface_hub import utils
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"{source}: no such folder, and fetching from the hub needs {error.name}: pip install 'alize[build]'"
        ) from error
    try:
        utils.validate_repo_id(source)  # type: ignore[attr-defined]
    except utils.HFValidationError:  # type: ignore[attr-defined]
        return False
    return True


def _fetch(repo: str, revision: str | None, progress: Progress | None) -> Path:
    """The snapshot folder in the hub's cache; its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # the HTTP library differs between versions of huggingface_hub; what it raises when a download breaks off is a base of this
    failures: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
    bars = _bar_class(progress) if progress else None
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=FETCHED, tqdm_class=bars))
    except failures as error:
        raise SourceNotFound(_explain(repo, revision, error)) from error


def _explain(repo: str, revision: str | None, error: BaseException) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{repo} is gated: accept its terms on its hub page, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repo} is no folder, nor a repository that the hub shows you: check the name, or `hf auth login` if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision}: give a branch, a tag or a full commit hash"
    if isinstance(error, LocalEntryNotFoundError):
        wanted = f"{repo} --revision {revision}" if revision else repo
        return (
            f"{repo} is no folder, its revision {revision or 'main'} is not complete in the hub's cache "
            f"({constants.HF_HUB_CACHE}) and the hub cannot be reached: run `hf download {wanted}` where it can and copy the "
            f"cache here, or give a checkpoint folder"
        )
    first_line = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{repo} could not be fetched into {constants.HF_HUB_CACHE} ({first_line}): try again, what has arrived is kept"


def _bar_class(progress: Progress) -> type[Any]:
    """A progress bar for huggingface_hub that draws nothing and forwards the bytes."""
    from tqdm.auto import tqdm

    furthest = 0

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            self.counts_bytes = options.get("unit") == "B"
            self.total = options.get("total") or 0  # a disabled bar keeps no books, so this one keeps its own
            self.n = options.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest
            self.n += n or 0
            # two bars count bytes, received and written: the one ahead is shown
            if self.counts_bytes and self.n > furthest:
                furthest = int(self.n)
                progress("fetch", furthest, max(int(self.total), furthest))

    return Bar
