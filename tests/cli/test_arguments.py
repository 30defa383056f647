from pathlib import Path

import pytest

from alize import arguments
from alize.arguments import parse
from alize.errors import UsageError
from alize.validate.cases import USUAL_SECONDS


def test_run_has_the_names_that_transformers_users_know() -> None:
    words = [
        "run",
        "a",
        "p",
        "--max-new-tokens",
        "7",
        "--temperature",
        ".5",
        "--top-k",
        "4",
        "--top-p",
        ".9",
        "--min-p",
        ".1",
        "--seed",
        "3",
        "--stop",
        "x",
        "--stop",
        "y",
    ]
    options = parse(words)
    assert (options.artifact, options.prompt, options.chat) == (Path("a"), "p", False)
    assert (options.max_new_tokens, options.temperature, options.top_k, options.top_p) == (7, 0.5, 4, 0.9)
    assert (options.min_p, options.seed, options.stop) == (0.1, 3, ["x", "y"])


def test_drafters_have_the_names_that_transformers_users_know() -> None:
    options = parse(["run", "a", "p", "--prompt-lookup-num-tokens", "8"])
    assert (options.prompt_lookup_num_tokens, options.assistant_model, options.num_assistant_tokens) == (8, None, 5)
    options = parse(["chat", "a", "--assistant-model", "b", "--num-assistant-tokens", "3"])
    assert (options.prompt_lookup_num_tokens, options.assistant_model, options.num_assistant_tokens) == (None, Path("b"), 3)


def test_defaults_are_greedy_and_checked() -> None:
    options = parse(["run", "a", "p"])
    assert (options.temperature, options.top_k, options.top_p, options.min_p, options.seed) == (0, 0, 1, 0, 0)
    assert (options.verify, options.unsafe_skip_validation, options.device, options.expect) == ("stat", False, None, None)


def test_the_budget_is_that_of_the_library() -> None:
    assert parse(["build", "s"]).validation_budget is parse(["validate", "a"]).validation_budget is None
    assert arguments._USUAL_SECONDS == USUAL_SECONDS


@pytest.mark.parametrize("words", [["--json", "inspect", "a"], ["inspect", "a", "--json"], ["inspect", "--json", "a"]])
def test_common_options_stand_anywhere(words: list[str]) -> None:
    options = parse(words)
    assert options.json
    assert not options.quiet


@pytest.mark.parametrize(("given", "meant"), [("f32", "fp32"), ("fp32", "fp32"), ("f16", "fp16"), ("bf16", "bf16"), (None, None)])
def test_weights_and_their_aliases(given: str | None, meant: str | None) -> None:
    words = ["build", "s"] if given is None else ["build", "s", "--weights", given]
    assert parse(words).weights == meant


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("build s --target coreml", "--target 'coreml' is unknown: use openvino or onnxruntime or tensorrt or tensorrt-rtx"),
        ("build s --weights q4_k_m", "--weights 'q4_k_m' is unknown: use one of fp32, fp16, bf16, int8, int4, mixed"),
        ("build s --weights mixed --bits many", "--bits many must be a number of bits a weight, 0 or more"),
        ("build s --weights int4 --group-size 48", "invalid choice: '48' (choose from "),
        ("build s --quantisation-budget -1", "--quantisation-budget -1 must be a number of nats, 0 or more"),
        ("build s --quantisation-budget much", "--quantisation-budget much must be a number of nats, 0 or more"),
        ("build s --validation-budget -1", "--validation-budget -1 must be a number of seconds, 0 or more"),
        ("build s --validation-budget nan", "--validation-budget nan must be a number of seconds, 0 or more"),
        ("build s --validation-budget soon", "--validation-budget soon must be a number of seconds, 0 or more"),
        ("build", "required: SOURCE (see `alize build --help`)"),
        ("run a p --max-new-tokens many", "invalid int value: 'many' (see `alize run --help`)"),
        ("run a p --top 4", "unrecognized arguments: --top 4"),
        ("run a p --verify half", "invalid choice: 'half'"),
        ("compile s", "invalid choice: 'compile'"),
        ("", "no command given"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(words: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words.split())
    assert message in str(caught.value)
