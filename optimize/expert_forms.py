"""Which pass lowers SparseMoE: one form for each name of the option `experts`."""

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from alize.errors import UsageError
from alize.optimize.expert_nodes import sparse_moes
from alize.optimize.passes import Pass

__all__ = ["NO_OPTIONS", "expert_form", "expert_pass", "form_of"]

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


def expert_form(model: ir.Model, options: Mapping[str, str]) -> str:
    """apart, tiled or gathered, "" for a model without experts. Where nothing is asked for: apart, which every engine runs."""
    return form_of(options, experts=bool(sparse_moes(model)))


def form_of(options: Mapping[str, str], *, experts: bool) -> str:
    """The same of a model that is known to have experts or none."""
    return options.get("experts", "apart") if experts else ""


def expert_pass(form: str, forms: Mapping[str, Pass]) -> tuple[Pass, ...]:
    """The pass of a form, none for "". Raises UsageError for a form that the target has not."""
    if not form:
        return ()
    if form not in forms:
        raise UsageError(f"experts {form!r} cannot be lowered to for this target: choose {' or '.join(forms)}")
    return (forms[form],)
