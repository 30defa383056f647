"""From a checkpoint to tokens: the sealed artifact of each target writes what PyTorch writes, far past the window."""

from pathlib import Path

import numpy as np
import pytest

from alize.build import build
from alize.compilers import COMPILERS
from alize.models import session as torch_backend
from alize.runtimes.model import load
from alize.runtimes.session import Session, session_limits
from alize.validate.measure import NEAR_TIE
from tests.tiny import tiny_checkpoint

PROMPT = np.arange(3, 20)[None]
NEW = 40


@pytest.fixture(scope="module", params=[6, 0], ids=["windowed", "full attention"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", window=request.param, tokenizer=True, dtype="bfloat16")


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> tuple[list[int], list[float]]:
    """PyTorch's greedy tokens, and by how many nats it preferred each to the second."""
    engine = torch_backend.open(checkpoint)
    limits = session_limits(engine.info, {})
    with Session(engine.runner(1), engine.info, batch=1, chunk=limits.chunk, slack=limits.slack) as session:
        return greedy(session)


def greedy(session: Session) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    margins: list[float] = []
    logits = session.append(PROMPT)[0, 0]
    while len(tokens) < NEW:
        second, first = np.sort(logits)[-2:]
        tokens.append(int(logits.argmax()))
        margins.append(float(first - second))
        logits = session.append([tokens[-1:]])[0, 0]
    return tokens, margins


@pytest.mark.parametrize("target", COMPILERS)
def test_an_artifact_writes_what_pytorch_writes(
    target: str, checkpoint: Path, expected: tuple[list[int], list[float]], tmp_path: Path
) -> None:
    """Every token, up to the first near-tie: behind one, the two texts are of different prompts."""
    manifest = build(str(checkpoint), output=tmp_path / "artifact", target=target)
    assert manifest.validation.verdict == "pass"
    assert manifest.target.weights == "bf16"
    with load(tmp_path / "artifact") as model, model.session() as session:
        found, _ = greedy(session)
    tokens, margins = expected
    where = next((index for index, pair in enumerate(zip(tokens, found, strict=True)) if pair[0] != pair[1]), None)
    assert where is None or margins[where] < NEAR_TIE, f"token {where}: PyTorch preferred its own by {margins[where]} nats"


@pytest.mark.parametrize("target", COMPILERS)
def test_two_builds_give_the_same_bytes(target: str, tmp_path: Path) -> None:
    """From two copies of the checkpoint, into two folders."""
    manifests = []
    for name in ("one", "two"):
        source = tiny_checkpoint(tmp_path / name / "checkpoint", window=5, layers=1, tokenizer=True)
        manifests.append(build(str(source), output=tmp_path / name / "artifact", target=target))
    first, second = ({entry.path: entry.sha256 for entry in manifest.files} for manifest in manifests)
    assert first == second
    assert manifests[0].digest == manifests[1].digest
