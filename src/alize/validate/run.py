"""The validation of one artifact, from its tokens to its verdict. docs/validation.md explains the three questions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import CaseResult, Manifest, ModelInfo, Validation
from alize.compilers import Compiler
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference
from alize.models.registry import weights_of
from alize.optimize.quantisation import Quantisation
from alize.progress import Progress
from alize.runtimes import golden
from alize.runtimes.registry import Engine, backend_module
from alize.validate.cases import UNWINDOWED_SPAN, Plan, make_plan
from alize.validate.continuation import check_continuation
from alize.validate.diagnose import changed_weights, first_difference, tap_names
from alize.validate.drive import run_case
from alize.validate.evidence import CaseEvidence, Evidence
from alize.validate.judge import Budget, fidelity_limit, judge_fidelity, judge_loss
from alize.validate.measure import Figures, measure
from alize.validate.prompts import validation_tokens
from alize.validate.references import References, run_references
from alize.validate.stored import as_stored

__all__ = ["Outcome", "validate_folder"]

_SECONDS_A_MULTIPLICATION = 1 / 30e9
"""What a token costs for each parameter that it is multiplied with: two cores reach some 70 GFLOP/s, half of it is assumed."""
_ROUNDED_LOG_PROB_ERROR = 20.0
"""Nats, of any token at all, where the engine rounds activations."""


@dataclass(frozen=True)
class Outcome:
    """validation: for the manifest.   evidence: for the report.   replay: golden prompts, for on other devices."""

    validation: Validation
    evidence: Evidence
    replay: tuple[golden.Case, ...]
    replay_budget: golden.Budget


def validate_folder(
    folder: Path,
    draft: Manifest,
    checkpoint: Checkpoint,
    compiler: Compiler,
    *,
    budget: Budget,
    budget_seconds: float,
    progress: Progress,
) -> Outcome:
    """Runs the reference and the artifact in FOLDER over the cases that the config asks for.

    draft: the manifest before it is sealed (model, target and configurations are read). budget_seconds = 0 leaves everything
    out: the verdict is then "partial", which `load` refuses. Raises what the checkpoint, the engine and the reference raise.
    """
    return _Validation(folder, draft, checkpoint, compiler, budget, progress).run(budget_seconds)


class _Validation:
    def __init__(
        self, folder: Path, draft: Manifest, checkpoint: Checkpoint, compiler: Compiler, budget: Budget, progress: Progress
    ) -> None:
        self.folder, self.draft, self.checkpoint = folder, draft, checkpoint
        self.compiler, self.budget, self.progress = compiler, budget, progress
        self.info: ModelInfo = draft.model
        self.cases: list[CaseEvidence] = []

    def run(self, budget_seconds: float) -> Outcome:
        if budget_seconds == 0:
            return self._nothing()
        weights = weights_of(self.checkpoint)
        parameters = sum(int(np.prod(weight.shape)) for weight in weights.values())
        plan = make_plan(self.info, seconds_a_token=parameters * _SECONDS_A_MULTIPLICATION, budget_seconds=budget_seconds)
        tokens = validation_tokens(self.checkpoint.folder, self.info, plan.length)
        self.progress.stage("compare weights", steps=1)
        findings = changed_weights(
            self.compiler.probe.stored_weights(self.folder),
            self.checkpoint,
            weights,
            quantisation=Quantisation.parse(self.draft.target.weights),
        )
        references = run_references(
            self.checkpoint, tokens, weights=self.draft.target.weights, bf16=plan.bf16_floor, progress=self.progress
        )
        self._fidelity_and_runtime(plan, tokens, references)
        self._quantisation(plan, references)
        continuation = self._continuation(plan, tokens)
        if any(case.reasons and case.question == "compile fidelity" for case in self.cases):
            findings += self._locate(tokens[: (max(self.info.windows) or UNWINDOWED_SPAN) + 3])
        evidence = Evidence(
            cases=tuple(self.cases),
            floor=references.floor,
            floor_bf16=references.floor_bf16,
            findings=tuple(findings),
            left_out=plan.left_out,
            continuation=continuation,
        )
        return Outcome(self._verdict(evidence, plan), evidence, self._golden(tokens, references), self._golden_budget())

    def _fidelity_and_runtime(self, plan: Plan, tokens: NDArray[np.int64], references: References) -> None:
        """Each case in accuracy mode against the reference, then as `load` runs it against accuracy mode.

        Where both are the same configuration there is nothing to lose, and the second half is not run.
        """
        limit = fidelity_limit(references.floor, self.budget)
        options = dict(self.draft.configurations[0].options)
        differs = options != dict(self.compiler.accuracy)
        self.progress.stage("artifact", steps=(1 + differs) * len(plan.cases))
        exact: list[NDArray[np.float32]] = []
        engine = self._open(dict(self.compiler.accuracy))
        for case in plan.cases:
            positions, logits = run_case(engine, self.info, case, tokens, references.kept)
            figures = measure(references.logits_at(positions), logits, positions)
            reasons = tuple(judge_fidelity(figures, limit))
            self.cases.append(CaseEvidence(case.name, "compile fidelity", figures, limit, reasons, plan.edges))
            exact.append(logits)
            self.progress.advance()
        engine.close()
        if not differs:
            return
        engine = self._open(options)
        for case, expected in zip(plan.cases, exact, strict=True):
            positions, logits = run_case(engine, self.info, case, tokens, references.kept)
            self._loss("runtime loss", case.name, measure(expected, logits, positions), plan)
            self.progress.advance()
        engine.close()

    def _quantisation(self, plan: Plan, references: References) -> None:
        if references.quantisation is not None:
            self._loss("quantisation loss", f"weights in {self.draft.target.weights}", references.quantisation, plan)

    def _loss(self, question: str, name: str, figures: Figures, plan: Plan) -> None:
        quantised = question == "quantisation loss"
        mean = self.budget.quantisation_kl if quantised else self.budget.runtime_kl
        worst = self.budget.quantisation_kl_max if quantised else self.budget.runtime_kl_max
        reasons = tuple(judge_loss(figures, mean=mean, worst=worst))
        if quantised and Quantisation.parse(self.draft.target.weights):
            reasons = tuple(f"{reason}: use smaller groups or int8, or raise --quantisation-budget" for reason in reasons)
        self.cases.append(CaseEvidence(name, question, figures, mean, reasons, plan.edges))

    def _continuation(self, plan: Plan, tokens: NDArray[np.int64]) -> dict[str, str]:
        if not plan.continuation:
            return {}
        self.progress.stage("greedy continuation")
        engine = self._open(dict(self.draft.configurations[0].options))
        prompt = tokens[: min(64, plan.length // 2)]
        figures, reasons, texts = check_continuation(
            engine,
            self.info,
            self.checkpoint,
            prompt,
            plan.continuation,
            weights=self.draft.target.weights,
            budget=self.budget,
        )
        engine.close()
        self.cases.append(CaseEvidence("greedy continuation", "runtime loss", figures, float("inf"), tuple(reasons), ()))
        return texts

    def _locate(self, tokens: NDArray[np.int64]) -> list[str]:
        """The first layer, half and position where the residual stream leaves the reference's."""
        self.progress.stage("find the first difference")
        plain, split = (_taps(self.checkpoint, tokens, self.draft.target.weights, order) for order in ("plain", "split"))
        artifact = self.compiler.probe.residual_stream(self.folder, tokens, tap_names(self.info))
        found = first_difference(plain, split, artifact, self.info)
        return (
            [found] if found else ["the residual stream agrees in one pass: the difference is in the cache, the head or the mask"]
        )

    def _open(self, options: dict[str, str | int | bool]) -> Engine:
        target = self.draft.target
        return backend_module(target.backend).open(self.folder, self.draft, target.device, options)

    def _verdict(self, evidence: Evidence, plan: Plan) -> Validation:
        results = tuple(
            CaseResult(case.name, case.question, not case.reasons, case.figures.finite_summary())  # type: ignore[arg-type]
            for case in evidence.cases
        )
        floors = {"float32 floor": evidence.floor, "bfloat16 floor": evidence.floor_bf16}
        figures = {name: floor.finite_summary() for name, floor in floors.items() if floor is not None}
        return Validation(
            level="device-validated",
            verdict="fail" if evidence.complaints else "pass",
            left_out=plan.left_out,
            budget=self.budget.as_dict(),
            cases=results,
            figures=figures,
        )

    def _nothing(self) -> Outcome:
        left_out = ("everything: the validation budget is 0 s",)
        validation = Validation("device-validated", "partial", left_out, self.budget.as_dict(), (), {})
        return Outcome(validation, Evidence((), None, None, left_out=left_out), (), self._golden_budget())

    def _golden(self, tokens: NDArray[np.int64], references: References) -> tuple[golden.Case, ...]:
        """A short prompt, and one as long as a replay of a few seconds allows: past the window's edge where it can be."""
        cases = []
        for size in sorted({min(33, len(tokens)), min(640, len(tokens))}):
            edges = [0, size // 2, *(max(self.info.windows) + step for step in (-2, -1, 0, 1)), size - 2, size - 1]
            positions = references.kept[np.isin(references.kept, [edge for edge in edges if 0 <= edge < size])]
            cases.append(golden.Case(tokens[:size], positions, references.log_probs(positions)))
        return tuple(cases)

    def _golden_budget(self) -> golden.Budget:
        """Where activations are rounded too, the least likely of all tokens move by several nats: KL alone judges."""
        rounded = Quantisation.parse(self.draft.target.weights) is not None
        return golden.Budget(kl=self.budget.runtime_kl_max, max_log_prob_error=_ROUNDED_LOG_PROB_ERROR if rounded else 1.0)


def _taps(
    checkpoint: Checkpoint, tokens: NDArray[np.int64], weights: str, summation: Literal["plain", "split"]
) -> dict[str, NDArray[np.float32]]:
    """What the reference's heads attended to and its residual stream, over tokens [S]."""
    reference = Reference(checkpoint, weights=as_stored(weights), summation=summation)
    return reference.run([tokens], positions=[np.array([0])], taps=True).taps[0]
