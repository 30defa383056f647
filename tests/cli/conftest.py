"""An artifact of the fake back-end with a tokenizer of single letters, and the command line run in this process."""

import io
import json
import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from alize import cli
from alize.artifact import Building, CaseResult, Configuration, Manifest, ModelInfo, Source, Target, Validation
from alize.runtimes.fake import FakeEngine
from alize.runtimes.golden import GOLDEN, Budget, Case, write_golden
from alize.runtimes.session import Session

SPECIAL = ["<unk>", "<s>", "</s>", "<user>", "<model>"]
LETTERS = string.ascii_letters + string.digits + " .,;:!?'\n-" + "".join(map(chr, range(0x400, 0x530)))  # and Cyrillic
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ '<user>' if m.role == 'user' else '<model>' }}{{ m.content }}{{ eos_token }}"
TEMPLATE += "{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
END = SPECIAL.index("</s>")


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Alize = Callable[..., Ran]
MakeFake = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIZE_STATE_DIR", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def alize(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Alize:
    """Runs a command line in this process; `stdin` is text or bytes."""

    def run(*words: str | Path, stdin: str | bytes = b"") -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="surrogateescape"))
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def make_fake() -> MakeFake:
    """Seals an artifact of the fake back-end."""
    return _make_fake


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return _make_fake(tmp_path / "model")


def _make_fake(
    output: Path,
    *,
    windows: Sequence[int] = (8, 8),
    max_positions: int = 1000,
    verdict: str = "pass",
    template: str | None = TEMPLATE,
    eos: tuple[int, ...] = (END,),
    backend: str = "fake",
    letters: str = LETTERS,
) -> Path:
    tokens = [*SPECIAL, *letters]
    info = ModelInfo(len(windows), 4, 2, 8, 32, len(tokens), tuple(windows), max_positions, 1, eos, 0, 0)
    with Building(output) as building:
        _write_tokenizer(building.folder, tokens, template)
        _write_golden(building.folder, info)
        manifest = Manifest(
            alize="0.1.0",
            source=Source("folder", None, None, "ab" * 32, "MistralForCausalLM", "mistral", {"sliding_window": max(windows)}),
            model=info,
            target=Target(backend, "cpu", "fp32", {}, {"fake": "1"}, (), {}),
            configurations=(Configuration("default", {"chunk": 8}),),
            validation=Validation(
                level="device-validated",
                verdict=verdict,  # type: ignore[arg-type]
                left_out=() if verdict == "pass" else ("2W+3",),
                budget={"seconds": 60.0},
                cases=(CaseResult("W+1", "compile fidelity", True, {"kl_max": 1.25e-7}),),
                figures={"floor": {"kl_max": 2e-9}},
            ),
            rebuild="alize build SOURCE --target fake",
        )
        building.seal(manifest)
    return output


def _write_tokenizer(folder: Path, letters: list[str], template: str | None) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)


def _write_golden(folder: Path, info: ModelInfo) -> None:
    prompt = np.arange(12, dtype=np.int64) + 5
    with Session(FakeEngine(info).runner(1), info, batch=1, chunk=8, slack=8) as session:
        logits = session.append(prompt[None], keep=0)[0].astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    case = Case(prompt, np.arange(12, dtype=np.int64), log_probs.astype(np.float32))
    write_golden(folder / GOLDEN, [case], Budget(kl=1e-6, max_log_prob_error=1e-4))
