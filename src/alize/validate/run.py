"""The validation of one artifact, from its tokens to its verdict. docs/validation.md explains the three questions."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from alize.artifact.manifest import Manifest, ModelInfo, Validation
from alize.artifact.pieces import Pieces
from alize.compilers import PROOF_BACKENDS, Compiler
from alize.memory import give_back
from alize.models.checkpoint import Checkpoint
from alize.models.reference import Reference, WeightRule
from alize.models.registry import single_weights
from alize.optimize.openvino_slices import Slices
from alize.optimize.quantisation import Quantisation
from alize.optimize.rounded import IntegerSource
from alize.progress import Progress
from alize.runtimes import golden
from alize.runtimes.registry import Engine, backend_module
from alize.validate.cases import UNWINDOWED_SPAN, Case, Plan, plan_for
from alize.validate.continuation import check_continuation
from alize.validate.coverage import Coverage
from alize.validate.cut_out import examine
from alize.validate.diagnose import changed_weights
from alize.validate.drive import chosen_experts, expert_taps, run_case
from alize.validate.evidence import CaseEvidence, Evidence
from alize.validate.golden_prompts import golden_budget, golden_replay
from alize.validate.judge import Budget, fidelity_limit, judge_fidelity, judge_loss
from alize.validate.locate import locate
from alize.validate.measure import Figures, measure
from alize.validate.near_ties import ROUTER_NEAR_TIE, Choice, follow
from alize.validate.prompts import validation_tokens
from alize.validate.references import References, run_references
from alize.validate.slices import OpenSlice, chosen_in_slices, run_cases, spelt
from alize.validate.stored import as_stored

__all__ = ["Outcome", "validate_folder"]


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
    budget_seconds: float | None,
    progress: Progress,
    slices: Slices | None = None,
    rounded: IntegerSource | None = None,
    pieces: Pieces | None = None,
) -> Outcome:
    """Runs the reference and the artifact in FOLDER over the cases that the config asks for.

    draft: the manifest before it is sealed (model, target and configurations are read). budget_seconds: see make_plan; below
    the minimum set the verdict is "partial", which `load` refuses. slices: run the artifact these layers at a time, where all
    of them unpacked would not fit in memory; the greedy continuation is then left out. rounded: the integers that the artifact
    has to hold; without it they are found from the checkpoint anew, without calibration. pieces: where the reference keeps how
    far it got, and goes on from. Raises what the checkpoint, the engine and the reference raise.
    """
    return _Validation(folder, draft, checkpoint, compiler, budget, progress, slices, rounded, pieces).run(budget_seconds)


class _Validation:
    def __init__(
        self,
        folder: Path,
        draft: Manifest,
        checkpoint: Checkpoint,
        compiler: Compiler,
        budget: Budget,
        progress: Progress,
        slices: Slices | None,
        rounded: IntegerSource | None,
        pieces: Pieces | None,
    ) -> None:
        self.slices, self.pieces = slices, pieces
        self.folder, self.draft, self.checkpoint = folder, draft, checkpoint
        self.compiler, self.budget, self.progress = compiler, budget, progress
        self.info: ModelInfo = draft.model
        self.backend = compiler.plan(draft.target.device).backend or compiler.target
        self.device = compiler.plan(draft.target.device).proof  # another one than the artifact's where that need not be here
        self.cross = self.device != draft.target.device
        self.cases: list[CaseEvidence] = []
        self.far: list[str] = []
        self.quantisation, self.rounded = Quantisation.parse(draft.target.weights, draft.target.structure), rounded
        self.rule = as_stored(self.quantisation or draft.target.weights, rounded)
        self.followed = 0

    def run(self, budget_seconds: float | None) -> Outcome:
        plan = plan_for(self.checkpoint, self.info, budget_seconds)
        if plan.length == 0:
            return self._nothing(plan)
        tokens = validation_tokens(self.checkpoint.folder, self.info, plan.length)
        self.progress.stage("compare weights", steps=1)
        findings = changed_weights(
            self.compiler.probe.stored_weights(self.folder),
            self.checkpoint,
            single_weights(self.checkpoint),
            quantisation=self.quantisation,
            integers=self.rounded,
        )
        self.rule = self._rule(right=not findings)
        references = run_references(
            self.checkpoint,
            tokens,
            weights=self.draft.target.weights,
            rule=self.rule,
            bf16=plan.bf16_floor,
            progress=self.progress,
            pieces=self.pieces,
        )
        self._fidelity_and_runtime(plan, tokens, references)
        self._quantisation(plan, references)
        continuation = self._continuation(plan, tokens)
        coverage, forced = self._experts(references)
        findings += forced
        if self._unlike():
            findings += self._locate(tokens[: (max(self.info.windows) or UNWINDOWED_SPAN) + 3], coverage)
        limits, reference = golden_budget(self.budget, self.draft.target.weights), Reference(self.checkpoint, weights=self.rule)
        replay = golden_replay(self.info, tokens, references, limits, reference=reference, progress=self.progress)
        evidence = Evidence(
            cases=tuple(self.cases),
            floor=references.floor,
            floor_bf16=references.floor_bf16,
            findings=tuple(findings),
            left_out=(*plan.left_out, *self._elsewhere(), *self._sliced(), *(coverage.unreachable_names() if coverage else ())),
            continuation=continuation,
            coverage=coverage,
            golden=replay.figures,
        )
        verdict = evidence.verdict(cross=self.cross, budget=self.budget, followed=self.followed, partial=plan.partial)
        return Outcome(verdict, evidence, replay.cases, replay.budget)

    def _rule(self, *, right: bool) -> WeightRule:
        """The weights that the artifact should hold: integers as they were made; without those as the artifact holds them where
        they were found to be right, and else made anew."""
        source = self.rounded
        if self.quantisation is not None and source is None and right:
            source = self.compiler.probe.stored_integers(self.folder)
        return as_stored(self.quantisation or self.draft.target.weights, source)

    def _fidelity_and_runtime(self, plan: Plan, tokens: NDArray[np.int64], references: References) -> None:
        """Each case in accuracy mode against the reference, then as `load` runs it against accuracy mode.

        The second half is not run where both are the same configuration, behind a first half that failed, and where the device
        that `load` runs it on is not here: what is lost there is judged by the golden prompts, at the first load.
        """
        limit = fidelity_limit(references.floor, self.budget)
        options = dict(self.draft.configurations[0].options)
        differs = not self.cross and options != dict(self.compiler.accuracy)
        self.progress.stage("artifact", steps=(1 + differs) * len(plan.cases))
        exact: list[NDArray[np.float32]] = []
        answers = self._answers(dict(self.compiler.accuracy), plan, tokens, references.kept)
        for case, (positions, logits) in zip(plan.cases, answers, strict=True):
            figures = measure(references.logits_at(positions), logits, positions)
            reasons = tuple(judge_fidelity(figures, limit))
            self.cases.append(CaseEvidence(case.name, "compile fidelity", figures, limit, reasons, plan.edges))
            exact.append(logits)
            self.progress.advance()
        if references.router_floor is not None:
            tolerance = self.budget.fidelity_factor * references.router_floor
            far = self._near_ties(plan, tokens, references, exact, self.compiler.accuracy, tolerance, judge_fidelity, limit)
            self.far += [str(choice) for choice in far[:1]]
        if not differs or self._unlike():
            return
        lossy: list[NDArray[np.float32]] = []
        answers = self._answers(options, plan, tokens, references.kept)
        for case, expected, (positions, logits) in zip(plan.cases, exact, answers, strict=True):
            self._loss("runtime loss", case.name, measure(expected, logits, positions), plan)
            lossy.append(logits)
            self.progress.advance()
        if references.routing is not None:
            tolerance = np.full(self.info.layers, ROUTER_NEAR_TIE)

            def judge(figures: Figures, mean: float) -> list[str]:
                return judge_loss(figures, mean=mean, worst=self.budget.runtime_kl_max)

            self._near_ties(plan, tokens, references, lossy, options, tolerance, judge, self.budget.runtime_kl)

    def _unlike(self) -> bool:
        """Whether some case in accuracy mode does not say what the reference says: nothing else has to be known then."""
        return any(case.reasons and case.question == "compile fidelity" for case in self.cases)

    def _answers(
        self, options: dict[str, str | int | bool], plan: Plan, tokens: NDArray[np.int64], kept: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Positions and logits of each case, from an engine that is closed behind the last one."""
        if self.slices is not None:
            yield from run_cases(self._slice_opener(options), self.slices, self.info, plan.cases, tokens, kept)
            return
        with closing(self._open(options)) as engine:
            for case in plan.cases:
                yield run_case(engine, self.info, case, tokens, kept)
        give_back()  # or the next configuration's weights come on top of what the allocator keeps

    def _slice_opener(self, options: dict[str, str | int | bool]) -> OpenSlice:
        return partial(self.compiler.slicer.open_slice, self.folder, self.info, options)

    def _quantisation(self, plan: Plan, references: References) -> None:
        if references.quantisation is not None:
            self._loss("quantisation loss", f"weights in {self.draft.target.weights}", references.quantisation, plan)

    def _loss(self, question: str, name: str, figures: Figures, plan: Plan) -> None:
        quantised = question == "quantisation loss"
        mean = self.budget.quantisation_kl if quantised else self.budget.runtime_kl
        worst = self.budget.quantisation_kl_max if quantised else self.budget.runtime_kl_max
        reasons = tuple(judge_loss(figures, mean=mean, worst=worst))
        if quantised and self.quantisation is not None:
            reasons = tuple(f"{reason}: use smaller groups or int8, or raise --quantisation-budget" for reason in reasons)
        self.cases.append(CaseEvidence(name, question, figures, mean, reasons, plan.edges))

    def _continuation(self, plan: Plan, tokens: NDArray[np.int64]) -> dict[str, str]:
        if not plan.continuation or self.slices is not None or self._unlike():  # in slices, each token of it needs all layers
            return {}
        self.progress.stage("greedy continuation")
        options = dict(self.compiler.accuracy if self.cross else self.draft.configurations[0].options)
        engine = self._open(options)
        prompt = tokens[: min(64, plan.length // 2)]
        figures, reasons, texts = check_continuation(
            engine,
            self.info,
            self.checkpoint,
            prompt,
            plan.continuation,
            rule=self.rule,
            quantised=self.quantisation is not None,
            tapped=lambda: self._open(options, taps=expert_taps(self.info)),
            budget=self.budget,
            progress=self.progress,
        )
        self.cases.append(CaseEvidence("greedy continuation", "runtime loss", figures, float("inf"), tuple(reasons), ()))
        return texts

    def _near_ties(
        self,
        plan: Plan,
        tokens: NDArray[np.int64],
        references: References,
        answers: list[NDArray[np.float32]],
        options: Mapping[str, str | int | bool],
        tolerance: NDArray[np.float64],
        judge: Callable[[Figures, float], list[str]],
        limit: float,
    ) -> list[Choice]:
        """The last cases measured, those that fail, again: against a reference that chose as the artifact did, under `options`,
        where the logits of its router are no further apart than tolerance [L]. Returns the choices that were."""
        first, far = len(self.cases) - len(plan.cases), list[Choice]()
        failing = [number for number in range(len(plan.cases)) if self.cases[first + number].reasons]
        if not failing:
            return far
        self.progress.stage("follow the router's near-ties", steps=len(failing))
        chosen = self._choices(dict(options), [plan.cases[number] for number in failing], tokens)
        reference = Reference(self.checkpoint, weights=self.rule)
        for number, choices in zip(failing, chosen, strict=True):
            case, before = plan.cases[number], self.cases[first + number]
            found = follow(reference, references, case, tokens, choices, tolerance=tolerance)
            far += found.far
            if found.logits is not None:
                figures = measure(found.logits, answers[number], before.figures.positions)
                notes = tuple(f"near-tie followed: {choice}" for choice in found.near)
                after = dataclasses.replace(before, figures=figures, reasons=tuple(judge(figures, limit)), notes=notes)
                self.cases[first + number] = after
                self.followed += len(found.near)
            self.progress.advance()
        return far

    def _choices(
        self, options: dict[str, str | int | bool], cases: Sequence[Case], tokens: NDArray[np.int64]
    ) -> list[list[NDArray[np.int64]]]:
        """The experts [L,S,top_k] that the artifact chooses in each row of each case."""
        if self.slices is not None:
            return [chosen_in_slices(self._slice_opener(options), self.slices, self.info, case, tokens) for case in cases]
        with closing(self._open(options, taps=expert_taps(self.info))) as engine:
            return [chosen_experts(engine, self.info, case, tokens) for case in cases]

    def _experts(self, references: References) -> tuple[Coverage | None, list[str]]:
        """Which experts the tokens reached; the others are run by name in the cut-out layer. No budget drops this."""
        if references.routing is None:
            return None, []
        coverage, findings = Coverage.of(references.routing, references.kept), list[str]()
        missed = {layer: np.flatnonzero(counts == 0).tolist() for layer, counts in enumerate(coverage.counts)}
        missed = {layer: experts for layer, experts in missed.items() if experts}
        if missed:
            self.progress.stage("experts that no token reached", steps=len(missed))
        reference = Reference(self.checkpoint, weights=self.rule)
        run = partial(
            examine, self.compiler.probe, self.folder, top_k=self.info.experts_per_token, factor=self.budget.fidelity_factor
        )
        for layer, experts in missed.items():
            mixture = reference.mixture(layer)
            cut = run(mixture, layer, experts)
            coverage.forced[layer, list(cut.ran)] = True
            coverage.unreachable[layer, list(cut.unreachable)] = True
            if cut.findings:  # all of the layer's, to tell which one it is
                cut = run(mixture, layer, range(self.info.experts))
                coverage.wrong[layer, list(cut.wrong)] = True
                findings += cut.findings
            self.progress.advance()
        return coverage, findings

    def _locate(self, tokens: NDArray[np.int64], coverage: Coverage | None) -> list[str]:
        """The first layer, part and position where the residual stream leaves the reference's, and what is wrong there."""
        if self.slices is not None:
            return [*self.far[:1], "the first difference was not looked for: the artifact was run in slices of its layers"]
        self.progress.stage("find the first difference")
        rule, factor = self.rule, self.budget.fidelity_factor
        found = locate(self.compiler.probe, self.folder, self.checkpoint, self.info, tokens, rule=rule, factor=factor)
        if coverage is not None:
            coverage.wrong[found.layer, list(found.experts)] = True
        nowhere = "the residual stream agrees in one pass: the difference is in the cache, the head or the mask"
        return list(found.findings) or self.far[:1] or [nowhere]

    def _elsewhere(self) -> tuple[str, ...]:
        device = self.draft.target.device
        return (f"runtime loss on {device}: the golden prompts are replayed at its first load",) if self.cross else ()

    def _sliced(self) -> tuple[str, ...]:
        return () if self.slices is None else (f"all layers at once and the greedy continuation: it ran in {spelt(self.slices)}",)

    def _open(self, options: dict[str, str | int | bool], taps: Sequence[str] = ()) -> Engine:
        return backend_module(self.backend, backends=PROOF_BACKENDS).open(self.folder, self.draft, self.device, options, taps)

    def _nothing(self, plan: Plan) -> Outcome:
        level: Literal["device-validated", "graph-validated"] = "graph-validated" if self.cross else "device-validated"
        validation = Validation(level, "partial", plan.left_out, self.budget.as_dict(), (), {})
        return Outcome(
            validation,
            Evidence((), None, None, left_out=plan.left_out),
            (),
            golden_budget(self.budget, self.draft.target.weights),
        )
