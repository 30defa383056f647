"""What both targets assert of matrices that are stored as integers: each is multiplied with as such, by layer and projection."""

from collections import Counter
from collections.abc import Mapping

from alize.errors import LoweringFailed
from alize.optimize.quantisation import Form

__all__ = ["HEAD", "describe_forms", "product_name", "require_products"]

HEAD = "lm_head"
_EMBEDDING = "model.embed_tokens.weight"


def require_products(weights: set[str], executed: Mapping[str, str], *, wanted: str, layers: int) -> None:
    """Raises LoweringFailed naming the first layer and projection that does not run as `wanted`.

    weights: names of the integer matrices. executed: what became of each product, by the name of its node.
    """
    products = sorted(product_name(name) for name in weights if name != _EMBEDDING or HEAD + ".weight" not in weights)
    for layer in range(layers):
        mine = [name for name in products if name.startswith(f"layers.{layer}.")]
        if not mine:
            raise LoweringFailed(f"layer {layer}: no matrix is stored as integers")
        for name in mine:
            _require(f"layer {layer}: {name.split('.', 2)[2]}", executed.get(name), wanted)
    if HEAD in products:
        _require("the head", executed.get(HEAD), wanted)


def _require(what: str, found: str | None, wanted: str) -> None:
    if found != wanted:
        raise LoweringFailed(f"{what} did not run as {wanted} but as {found or 'nothing of that name'}")


def product_name(weight: str) -> str:
    """The name of the MatMul that reads a weight: its own without what every name has, `layers.{i}.experts.{e}.{part}` of an
    expert, and of an embedding the head."""
    name = weight.removeprefix("model.").removesuffix(".weight").replace(".mlp.experts.", ".experts.")
    return HEAD if weight == _EMBEDDING else name


def describe_forms(forms: Mapping[str, tuple[Form, int]]) -> dict[str, int]:
    """For the manifest: form -> how many matrices have it. forms: of each weight, with the size of its input axis."""
    return dict(sorted(Counter(form.describe(size) for form, size in forms.values()).items()))
