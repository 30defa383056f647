"""What a validation leaves for the report: every measured case with its positions, and the floors they are judged against."""

from dataclasses import dataclass, field

from alize.artifact.manifest import CaseResult, Validation
from alize.validate.coverage import Coverage
from alize.validate.judge import Budget
from alize.validate.measure import Figures

__all__ = ["CaseEvidence", "Evidence"]


@dataclass(frozen=True)
class CaseEvidence:
    """name: as in the manifest.   question: compile fidelity, quantisation loss or runtime loss.   edges: positions of interest.

    limit: the largest logit error allowed (compile fidelity), or the mean KL allowed (the two losses); infinite where tokens
    are judged, not figures.
    reasons: why it failed; empty = passed.   notes: what else was found, near-ties of a router that the reference followed, say.
    """

    name: str
    question: str
    figures: Figures
    limit: float
    reasons: tuple[str, ...] = ()
    edges: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """floor: float32 in another summation order.   floor_bf16: the reference computed in bfloat16. None where left out.

    findings: what was found wrong, most telling first (a window, a weight, a layer). continuation: prompt and greedy text.
    coverage: which experts were run; None where the model has none, or nothing was measured. golden: figures of the golden
    prompts of a model with experts.
    """

    cases: tuple[CaseEvidence, ...]
    floor: Figures | None
    floor_bf16: Figures | None
    findings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    continuation: dict[str, str] = field(default_factory=dict)
    coverage: Coverage | None = None
    golden: dict[str, float] = field(default_factory=dict)

    @property
    def complaints(self) -> tuple[str, ...]:
        """Everything that speaks against the artifact: the findings, then what each case failed by. Empty = it passes."""
        failed = (f"{case.question}, {case.name}: {reason}" for case in self.cases for reason in case.reasons)
        return (*self.findings, *failed)

    def verdict(self, *, cross: bool, budget: Budget, followed: int, partial: bool) -> Validation:
        """For the manifest. cross: it ran on another device than the artifact's.   followed: near-ties of routers.

        partial: less was run than a proof takes.
        """
        results = tuple(
            CaseResult(case.name, case.question, not case.reasons, case.figures.finite_summary())  # type: ignore[arg-type]
            for case in self.cases
        )
        floors = {"float32 floor": self.floor, "bfloat16 floor": self.floor_bf16}
        figures = {name: floor.finite_summary() for name, floor in floors.items() if floor is not None}
        if self.coverage is not None:
            figures["experts"] = self.coverage.figures() | {"near_ties_followed": float(followed)} | self.golden
        return Validation(
            level="graph-validated" if cross else "device-validated",
            verdict="fail" if self.complaints else "partial" if partial else "pass",
            left_out=self.left_out,
            budget=budget.as_dict(),
            cases=results,
            figures=figures,
        )
