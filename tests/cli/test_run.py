import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alize import run as run_module
from alize.artifact import read
from alize.runtimes.generate import GenerationOptions, generate
from alize.runtimes.model import load

Alize = Callable[..., Any]
MakeFake = Callable[..., Path]


def expected(artifact: Path, prompt: str, *, chat: bool = False, **options: Any) -> str:
    """The text by another way: generate all tokens, decode them at once."""
    with load(artifact) as model, model.session() as session:
        ids = model.tokenizer.encode_chat([{"role": "user", "content": prompt}]) if chat else model.tokenizer.encode(prompt)
        settings = GenerationOptions(stop_token_ids=model.info.eos_token_ids, **options)
        return model.tokenizer.decode(np.array(list(generate(session, ids[None], settings)))[:, 0])


def test_stdout_is_the_models_text_to_the_letter(alize: Alize, artifact: Path) -> None:
    ran = alize("run", artifact, "Once upon", "--max-new-tokens", 40)
    assert ran.code == 0
    assert ran.out == expected(artifact, "Once upon", max_new_tokens=40)
    assert len(ran.out) > 10


def test_stderr_has_the_verdict_and_the_speed(alize: Alize, artifact: Path) -> None:
    ran = alize("run", artifact, "Once upon", "--max-new-tokens", 12)
    verdict, summary = ran.err.splitlines()
    assert verdict == f"alize: {artifact}: pass (device-validated), fake cpu fp32, digest {read(artifact).digest[:12]}"
    assert re.fullmatch(r"alize: 9 prompt tokens in \d+\.\d\d s, 12 new in \d+\.\d\d s(, \d+\.\d tokens/s)? \(length\)", summary)
    assert alize("run", artifact, "Once upon", "--max-new-tokens", 12, "--quiet").err == ""


def test_sampling_options_arrive(alize: Alize, artifact: Path) -> None:
    words = ["--max-new-tokens", 30, "--temperature", 2.5, "--top-k", 20, "--top-p", 0.9, "--min-p", 0.01, "--seed", 5]
    text = expected(artifact, "abc", max_new_tokens=30, temperature=2.5, top_k=20, top_p=0.9, min_p=0.01, seed=5)
    assert alize("run", artifact, "abc", *words).out == text
    assert alize("run", artifact, "abc", *words[:-1], 6).out != text


@pytest.mark.parametrize("sampling", [[], ["--temperature", 2.5, "--seed", 5]])
def test_drafts_change_the_summary_alone(
    alize: Alize, artifact: Path, make_fake: MakeFake, tmp_path: Path, sampling: list[Any]
) -> None:
    make_fake(tmp_path / "assistant")
    words = ["run", artifact, "abc", "--max-new-tokens", 31, *sampling]
    plain = alize(*words)
    assisted = alize(*words, "--assistant-model", tmp_path / "assistant", "--num-assistant-tokens", 4)
    assert assisted.out == plain.out == alize(*words, "--prompt-lookup-num-tokens", 8).out
    assert re.search(r", (\d\d) of \1 drafted ones accepted \(length\)\n", assisted.err)  # it is the same model
    assert "drafted" not in plain.err
    end = alize(*words, "--assistant-model", tmp_path / "assistant", "--json").lines[-1]["end"]
    assert end["drafted_tokens"] == end["accepted_tokens"] > 9


def test_an_assistant_that_spells_otherwise_is_refused(alize: Alize, artifact: Path, make_fake: MakeFake, tmp_path: Path) -> None:
    other = make_fake(tmp_path / "other", letters="abcdefghijklmnop")
    ran = alize("run", artifact, "abc", "--assistant-model", other)
    assert (ran.code, ran.out) == (2, "")
    assert "the assistant's tokenizer is another one" in ran.err


def test_chat_applies_the_template(alize: Alize, artifact: Path) -> None:
    ran = alize("run", artifact, "abc", "--chat", "--max-new-tokens", 20)
    assert ran.out == expected(artifact, "abc", chat=True, max_new_tokens=20)
    assert ran.out != alize("run", artifact, "abc", "--max-new-tokens", 20).out


def test_a_model_without_a_template(alize: Alize, make_fake: MakeFake, tmp_path: Path) -> None:
    ran = alize("run", make_fake(tmp_path / "raw", template=None), "abc", "--chat")
    assert (ran.code, ran.out) == (2, "")
    assert "no chat template" in ran.err


@pytest.mark.parametrize("stdin", ["Once upon\n", "Once upon", "Once upon\r\n"])
def test_a_prompt_from_stdin(alize: Alize, artifact: Path, stdin: str) -> None:
    assert alize("run", artifact, "-", "--max-new-tokens", 9, stdin=stdin).out == expected(
        artifact, "Once upon", max_new_tokens=9
    )


def test_a_stop_string_ends_before_it(alize: Alize, artifact: Path) -> None:
    text = expected(artifact, "abc", max_new_tokens=60)
    stop = text[20:22]
    ran = alize("run", artifact, "abc", "--max-new-tokens", 60, "--stop", "never to be seen", "--stop", stop)
    assert ran.out == text[: text.index(stop)]
    assert "(stop_string)" in ran.err


def test_text_that_might_have_become_a_stop_string_is_not_lost(alize: Alize, artifact: Path) -> None:
    text = expected(artifact, "abc", max_new_tokens=20)
    ran = alize("run", artifact, "abc", "--max-new-tokens", 20, "--stop", text[-1] + "never to be seen")
    assert ran.out == text
    assert "(length)" in ran.err


def test_an_end_token_ends_it(alize: Alize, make_fake: MakeFake, tmp_path: Path) -> None:
    every_letter = tuple(range(5, 100))
    ran = alize("run", make_fake(tmp_path / "short", eos=every_letter), "abc", "--max-new-tokens", 60)
    assert "(stop)" in ran.err
    assert len(ran.out) < 59


def test_a_full_context_ends_it(alize: Alize, make_fake: MakeFake, tmp_path: Path) -> None:
    short = make_fake(tmp_path / "short", windows=(8, 0), max_positions=20, eos=())
    ran = alize("run", short, "abcdefghij", "--max-new-tokens", 60)
    assert ran.code == 0
    assert re.search(r", 11 new in .*\(context\)", ran.err)  # ten appended, and one that needs no place


def test_json_lines(alize: Alize, artifact: Path) -> None:
    *texts, end = alize("run", artifact, "abc", "--max-new-tokens", 20, "--json").lines
    assert "".join(line["text"] for line in texts) == expected(artifact, "abc", max_new_tokens=20)
    assert all(line.keys() == {"text"} for line in texts)
    assert end["end"].keys() == {"finish_reason", "prompt_tokens", "new_tokens", "prompt_seconds", "seconds"}
    assert (end["end"]["prompt_tokens"], end["end"]["new_tokens"], end["end"]["finish_reason"]) == (3, 20, "length")


@pytest.mark.parametrize("json_too", [False, True])
def test_text_is_streamed(artifact: Path, json_too: bool) -> None:
    """The first letter is there while the engine still waits to make the second."""
    code = """
import sys
from alize.runtimes import fake
real = fake.FakeRunner.step
steps = []
def step(self, tokens, *rest):
    if tokens.shape[1] == 1 and not steps:
        steps.append(1)
        sys.stdin.readline()
    return real(self, tokens, *rest)
from alize.runtimes.model import load
load  # the golden replay is done with the real one
from alize import run
loaded = run._loaded
import contextlib
@contextlib.contextmanager
def slow(options):
    with loaded(options) as model:
        fake.FakeRunner.step = step
        yield model
run._loaded = slow
from alize.cli import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["run", str(artifact), "abc", "--max-new-tokens", "4"] + (["--json"] if json_too else [])
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        there, _, _ = select.select([process.stdout], [], [], 30)
        head = os.read(process.stdout.fileno(), 1000).decode() if there else ""
        process.communicate(b"\n", timeout=60)
    assert json.loads(head)["text"] if json_too else len(head) == 1
    assert process.returncode == 0


def test_ctrl_c_is_130_and_keeps_what_was_said(make_fake: MakeFake, tmp_path: Path) -> None:
    words = ["run", str(make_fake(tmp_path / "endless", eos=())), "abc", "--max-new-tokens", "100000000"]
    process = subprocess.Popen([sys.executable, "-m", "alize", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith(b"alize: error: interrupted\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([""], 2, "the prompt is empty"),
        (["abc", "--max-new-tokens", 0], 2, "max_new_tokens 0 must be 1 or more"),
        (["abc", "--temperature", -1], 2, "temperature -1.0 must be 0 (greedy) or more"),
        (["abc", "--top-p", 0], 2, "top_p 0.0 must be"),
        (["abc", "--stop", ""], 2, "a stop string is empty"),
        (["abc", "--prompt-lookup-num-tokens", 0], 2, "num_tokens 0 must be 1 or more"),
        (["abc", "--prompt-lookup-num-tokens", 5, "--assistant-model", "x"], 2, "not allowed with argument"),
        (["abc", "--assistant-model", "nowhere"], 6, "nowhere"),
        (["abc", "--expect", "0" * 64], 6, "not the pinned"),
        (["abc", "--expect", "12"], 2, "is not a digest"),
        (["abc", "--device", "npu"], 7, "no device 'npu'"),
        (["abc", "--configuration", "fast"], 2, "no configuration 'fast'"),
        (["\udcff"], 2, "not UTF-8"),
        (["-"], 2, "the prompt is empty"),
    ],
)
def test_bad_input(alize: Alize, artifact: Path, words: list[Any], code: int, message: str) -> None:
    ran = alize("run", artifact, *words)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err.splitlines()[-1]
    assert alize("run", artifact, *words, "--json").lines[-1]["error"]["exit_code"] == code


def test_bytes_on_stdin_that_are_no_text(alize: Alize, artifact: Path) -> None:
    ran = alize("run", artifact, "-", stdin=b"ab\xff")
    assert ran.code == 2
    assert "the prompt is not UTF-8 at letter 3" in ran.err


def test_a_prompt_beyond_the_models_maximum(alize: Alize, make_fake: MakeFake, tmp_path: Path) -> None:
    ran = alize("run", make_fake(tmp_path / "short", windows=(8, 0), max_positions=20), "a" * 21)
    assert (ran.code, ran.out) == (8, "")
    assert "needs 21 positions, the model has 20" in ran.err


def test_a_changed_file_is_refused_with_the_mending_command(alize: Alize, artifact: Path) -> None:
    path = artifact / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    ran = alize("run", artifact, "abc")
    assert ran.code == 6
    assert ran.err == ran.err.splitlines()[0] + "\n"
    assert "tokenizer.json is not what was sealed" in ran.err
    assert "rebuild with `alize build SOURCE --target fake`" in ran.err


@pytest.mark.parametrize("verdict", ["partial", "fail"])
def test_no_passing_verdict_is_refused_unless_asked_for(alize: Alize, make_fake: MakeFake, tmp_path: Path, verdict: str) -> None:
    unproven = make_fake(tmp_path / "unproven", verdict=verdict)
    assert alize("run", unproven, "abc").code == 6
    ran = alize("run", unproven, "abc", "--max-new-tokens", 5, "--unsafe-skip-validation")
    assert (ran.code, len(ran.out)) == (0, 5)


def test_verify_full_is_handed_on(alize: Alize, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    real = run_module.load

    def spy(path: Path, **options: Any) -> Any:
        seen.append(options)
        return real(path, **options)

    monkeypatch.setattr(run_module, "load", spy)
    alize("run", artifact, "abc", "--max-new-tokens", 1, "--verify", "full", "--device", "cpu", "--expect", read(artifact).digest)
    assert seen == [
        {
            "device": "cpu",
            "expect": read(artifact).digest,
            "verify": "full",
            "configuration": None,
            "unsafe_skip_validation": False,
        }
    ]
