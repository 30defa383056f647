"""Generating with drafts against generating without, alternating in one run. From the repository's root:

    python -m benchmarks.speculation ARTIFACT                           prompt lookup; keeps benchmarks/results/speculation.json
    python -m benchmarks.speculation ARTIFACT --assistant ARTIFACT      a smaller model drafts

Greedy answers to the prompts of speculation.json, in the model's chat template: summaries that may quote, and edits of code that
repeat most of it. Every round generates each answer both ways, now this first and now that. Decoding is timed from the first new
token to the last, and the whole from the call. That the tokens are the same is looked at each time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alize.runtimes import AssistantModel, Drafter, GenerationOptions, Model, PromptLookup, Session, generate, load
from benchmarks.measuring import summaries, write_result

PROMPTS = Path(__file__).with_suffix(".json")
PLAIN, DRAFTED = "without drafts", "with drafts"


@dataclass(frozen=True)
class Answer:
    """Seconds to the first token, and from there to the last."""

    tokens: list[int]
    first: float
    decoding: float
    drafted: int
    accepted: int

    def steps(self) -> int:
        """Appends behind that of the prompt."""
        return len(self.tokens) - 1 - self.accepted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--assistant", type=Path, help="an artifact that drafts")
    parser.add_argument("--num-tokens", type=int, help="of a draft, at most")
    parser.add_argument("--configuration", help="of the artifact")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="speculation", help="of the file in benchmarks/results")
    options = parser.parse_args()
    with load(options.artifact, configuration=options.configuration) as model, _drafter(options, model) as drafter:
        write_result(options.name, Bench(model, drafter, options.max_new_tokens, options.rounds).run())


@contextmanager
def _drafter(options: argparse.Namespace, model: Model) -> Iterator[Drafter]:
    size = {} if options.num_tokens is None else {"num_tokens": options.num_tokens}
    if options.assistant is None:
        yield PromptLookup(**size)
        return
    with load(options.assistant) as assistant, AssistantModel(assistant, model, **size) as drafter:
        yield drafter


class Bench:
    def __init__(self, model: Model, drafter: Drafter, most: int, rounds: int) -> None:
        self.model, self.drafter, self.rounds = model, drafter, rounds
        self.options = GenerationOptions(max_new_tokens=most, stop_token_ids=model.info.eos_token_ids)

    def run(self) -> dict[str, Any]:
        kinds: dict[str, dict[str, str]] = json.loads(PROMPTS.read_text(encoding="utf-8"))
        found: dict[str, Any] = {}
        with self.model.session() as session:
            for kind, prompts in kinds.items():
                found[kind] = {name: self._prompt(session, text) for name, text in prompts.items()}
        target, configuration = self.model.manifest.target, self.model.configuration
        return {
            "what": f"{self.model.manifest.source.architecture}, {target.backend}, weights {target.weights}",
            "configuration": dict(configuration.options),
            "drafter": type(self.drafter).__name__,
            "prompts": found,
            "kinds": {kind: _of_kind(list(answers.values())) for kind, answers in found.items()},
        }

    def _prompt(self, session: Session, text: str) -> dict[str, Any]:
        prompt = self.model.tokenizer.encode_chat([{"role": "user", "content": text}])
        self._answer(session, prompt, None)  # warms up
        answers: dict[str, list[Answer]] = {PLAIN: [], DRAFTED: []}
        for number in range(self.rounds):
            for name in (PLAIN, DRAFTED)[:: 1 if number % 2 else -1]:
                answers[name].append(self._answer(session, prompt, self.drafter if name == DRAFTED else None))
        last = answers[DRAFTED][-1]
        return {
            "prompt_tokens": len(prompt),
            "new_tokens": len(last.tokens),
            "same_tokens": all(answer.tokens == answers[PLAIN][0].tokens for both in answers.values() for answer in both),
            "same_until": _same(answers[PLAIN][0].tokens, last.tokens),
            "drafted": last.drafted,
            "accepted": last.accepted,
            "tokens_a_step": round((len(last.tokens) - 1) / max(last.steps(), 1), 2),
            "decoding_seconds": summaries({name: [one.decoding for one in some] for name, some in answers.items()}),
            "whole_seconds": summaries({name: [one.first + one.decoding for one in some] for name, some in answers.items()}),
        }

    def _answer(self, session: Session, prompt: NDArray[np.int64], drafter: Drafter | None) -> Answer:
        session.reset()
        if drafter is not None:
            drafter.reset()
        began = first = time.perf_counter()
        tokens: list[int] = []
        running = generate(session, prompt[None], self.options, drafter=drafter)
        for step in running:
            tokens.append(int(step[0]))
            first = time.perf_counter() if len(tokens) == 1 else first
        return Answer(tokens, first - began, time.perf_counter() - first, running.drafted, running.accepted)


def _same(one: list[int], other: list[int]) -> int:
    """How many tokens the two begin with alike."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _of_kind(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the prompts of their medians of paired ratios: how many times as fast."""
    ratio = f"{PLAIN} / {DRAFTED}"
    return {
        "decoding_times_as_fast": round(statistics.median(one["decoding_seconds"][ratio]["median"] for one in answers), 2),
        "whole_times_as_fast": round(statistics.median(one["whole_seconds"][ratio]["median"] for one in answers), 2),
        "accepted": round(sum(one["accepted"] for one in answers) / sum(one["drafted"] for one in answers), 2),
        "same_tokens": all(one["same_tokens"] for one in answers),
    }


if __name__ == "__main__":
    main()
