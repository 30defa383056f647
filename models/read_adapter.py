"""A PEFT LoRA adapter folder, held to the checkpoint that it is merged into: every one of its tensors finds its place, or is
named in an error.

Modules have the names that they have in transformers. Experts come in two ways, whatever the layout of the checkpoint: factors
of each expert (`block_sparse_moe.experts.{e}.w1`, as adapters made with transformers 4 have them), or of the parameters in which
transformers 5 keeps all experts (`mlp.experts.gate_up_proj` and `down_proj`, peft's target_parameters). Of those peft stores
`lora_A` [E*r,in], expert after expert, and `lora_B` [out,r*E], where the experts take turns; where both parameters have factors,
those of gate_up_proj are stored under `experts.base_layer`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from alize.errors import AdapterError, SourceNotFound
from alize.models.adapter import Adapter, LowRank, Merge
from alize.models.adapter_config import CONFIG, AdapterConfig, ends_with
from alize.models.checkpoint import DTYPES, Checkpoint, Weight, read_header
from alize.models.mixtral import PUBLISHED
from alize.models.multimodal import text_tensors
from alize.models.registry import family_for, single_weights
from alize.models.tensor_info import TensorInfo

__all__ = ["TENSORS", "merge_adapter"]

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = {
    ".lora_A.weight": "A", ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding A", ".lora_embedding_B": "embedding B",
}  # fmt: skip
EMBEDDINGS = ("model.embed_tokens", "lm_head")
STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(\w+)$")


def merge_adapter(checkpoint: Checkpoint, folder: Path) -> Adapter:
    """Opens the adapter in `folder` and has `checkpoint` merge it into its tensors while they are read.

    Only headers are read here. Raises SourceNotFound for a missing folder or file, AdapterError for an adapter that is not plain
    LoRA, is of another model, or has more or less than adapter_config.json says; and what `single_weights` raises.
    """
    config = AdapterConfig.read(folder)
    tensors = _tensors(folder)
    reader = _Reader(checkpoint, folder, config, tensors, single_weights(checkpoint))
    adapter = Adapter(config.settings, tensors, reader.merges(), checkpoint.view)
    checkpoint.merge(adapter)
    return adapter


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    if not (folder / TENSORS).is_file():
        other = next((path.name for path in sorted(folder.glob("adapter_model.*"))), None)
        why = "" if other is None else f", only {other} (pickle files run code when they are read): save it as safetensors"
        raise SourceNotFound(f"{folder} has no {TENSORS}{why or '; give the folder of a PEFT adapter'}")
    return read_header(folder / TENSORS)


@dataclass
class _Module:
    """The tensors of one module: its factors by what they are, and their names for messages."""

    stored: str  # its name in the adapter, without peft's prefix
    factors: dict[str, TensorInfo] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Finds the place of each tensor of an adapter."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        config: AdapterConfig,
        tensors: Mapping[str, TensorInfo],
        weights: Mapping[str, Weight],
    ) -> None:
        self.checkpoint, self.folder, self.config, self.tensors, self.weights = checkpoint, folder, config, tensors, weights
        self.tied = family_for(checkpoint.config).config.from_dict(checkpoint.config).tie_embeddings
        self.products: dict[str, list[LowRank]] = {}
        self.wholes: dict[str, Callable[[], Tensor]] = {}
        self.adapted: set[str] = set()  # modules and parameters with factors, by their names in transformers
        self.saved: set[str] = set()  # modules that are there whole

    def merges(self) -> dict[str, Merge]:
        """By the name of the checkpoint's tensor."""
        modules = self._modules()
        for name, module in modules.items():
            self._check_pair(module)
            if name.endswith((".mlp.experts", ".mlp.experts.base_layer")):
                self._add_stack(name, module)
            else:
                self._add_matrix(name, module)
        self._check_targets()
        changed = sorted(self.products.keys() | self.wholes.keys())
        return {name: Merge(name, tuple(self.products.get(name, ())), self.wholes.get(name)) for name in changed}

    def _modules(self) -> dict[str, _Module]:
        """Modules with factors, by their name in a text model; whole tensors are placed on the way."""
        stripped = {key.removeprefix(PREFIX): key for key in self.tensors}
        places = {stored: stored for stored in stripped}
        if self.checkpoint.multimodal is not None:
            renamed = text_tensors({stored: stored for stored in stripped})
            places = {stored: name for name, stored in renamed.items()}
        modules: dict[str, _Module] = {}
        for stored, key in sorted(stripped.items()):
            self._check_dtype(key)
            name = places.get(stored)
            if name is None:
                raise AdapterError(f"{self.folder / TENSORS}: {key} is of the vision tower, which is left out: train text only")
            ending = next((ending for ending in FACTORS if name.endswith(ending)), None)
            if ending is None:
                self._place_whole(name, key)
                continue
            module = modules.setdefault(name.removesuffix(ending), _Module(stored.removesuffix(ending)))
            module.factors[FACTORS[ending]], module.keys[FACTORS[ending]] = self.tensors[key], key
        if not modules and not self.wholes:
            raise AdapterError(f"{self.folder / TENSORS} holds no tensor: the adapter was not saved completely")
        return modules

    def _check_dtype(self, key: str) -> None:
        if self.tensors[key].dtype not in DTYPES:
            raise AdapterError(f"{self.folder / TENSORS}: {key} is {self.tensors[key].dtype}, not one of {', '.join(DTYPES)}")

    def _check_pair(self, module: _Module) -> None:
        if set(module.factors) not in ({"A", "B"}, {"embedding A", "embedding B"}):
            found = next(iter(module.keys.values()))
            raise AdapterError(f"{self.folder / TENSORS}: {found} has no partner: the adapter was not saved completely")

    def _place_whole(self, name: str, key: str) -> None:
        """A tensor that replaces the checkpoint's own: of modules_to_save, or an embedding that peft saved along."""
        module = name.rpartition(".")[0].removesuffix(".base_layer")
        embedding = module in EMBEDDINGS and name.endswith(".weight")
        saved = any(part.endswith(self.config.modules_to_save) for part in _parents(module)) and not name.endswith(
            "base_layer.weight"
        )
        target = f"{module}.weight" if embedding else name
        weight = self.weights.get(_canonical(target.removesuffix(".weight")) + ".weight")
        self._check_tied(module, key)
        if not (embedding or saved) or weight is None or weight.index is not None or weight.rows is not None:
            raise self._left_over(key)
        self._check_shape(key, self.tensors[key].shape, weight.shape, target)
        self.wholes[weight.sources[0]] = partial(self.checkpoint.view, self.tensors[key])
        self.saved.add(module)

    def _add_matrix(self, name: str, module: _Module) -> None:
        """Factors of a linear layer, of an embedding, of one expert, or of a parameter that is a matrix."""
        canonical = _canonical(name)
        weight = self.weights.get(f"{canonical}.weight")
        embedding = "embedding A" in module.factors
        if weight is None or len(weight.shape) != 2 or embedding != (name == EMBEDDINGS[0]):
            raise self._left_over(next(iter(module.keys.values())))
        self._check_tied(name, next(iter(module.keys.values())))
        kind = "embedding " if embedding else ""
        down, up = module.factors[f"{kind}A"], module.factors[f"{kind}B"]
        parameter = ends_with(f"{module.stored}.weight", self.config.target_parameters)
        known = f"{module.stored}.weight" if parameter else module.stored
        rank, (outputs, inputs) = self.config.rank_of(known), weight.shape
        sizes = (inputs, outputs) if embedding else (outputs, inputs)
        self._check_factor(module.keys[f"{kind}A"], down, (rank, sizes[1]), name, rank)
        self._check_factor(module.keys[f"{kind}B"], up, (sizes[0], rank), name, rank)
        left, right = partial(self.checkpoint.view, up), partial(self.checkpoint.view, down)
        scale, rounded = self.config.scale_of(known), parameter or embedding
        self._add(weight, LowRank(left, right, rank, scale, rounded=rounded, transposed=embedding))
        self.adapted.add(known)

    def _add_stack(self, name: str, module: _Module) -> None:
        """Factors of a parameter that holds all experts of a layer."""
        container, stored = (text.removesuffix(".base_layer") for text in (name, module.stored))
        asked = [part for part in STACKS if ends_with(f"{stored}.{part}", self.config.target_parameters)]
        inner = name.endswith(".base_layer")
        if len(asked) != 2 and (inner or len(asked) != 1):
            raise self._left_over(next(iter(module.keys.values())))
        part = asked[0] if inner or len(asked) == 1 else asked[1]
        known = f"{stored}.{part}"
        stacks = [self._experts(f"{container}.{one}") for one in STACKS[part] if f"{container}.0.{one}.weight" in self.weights]
        if not stacks:
            raise self._left_over(next(iter(module.keys.values())))
        rank, experts = self.config.rank_of(known), len(stacks[0])
        outputs, inputs = sum(stack[0].shape[0] for stack in stacks), stacks[0][0].shape[1]
        self._check_factor(module.keys["A"], module.factors["A"], (rank * experts, inputs), known, rank)
        self._check_factor(module.keys["B"], module.factors["B"], (outputs, rank * experts), known, rank)
        first = 0
        for stack in stacks:
            rows = (first, first + stack[0].shape[0])
            for e, weight in enumerate(stack):
                left = partial(_left_of, partial(self.checkpoint.view, module.factors["B"]), rows, experts, e)
                right = partial(_right_of, partial(self.checkpoint.view, module.factors["A"]), experts, e)
                self._add(weight, LowRank(left, right, rank, self.config.scale_of(known), rounded=True))
            first = rows[1]
        self.adapted.add(known)

    def _experts(self, stack: str) -> list[Weight]:
        container, _, part = stack.rpartition(".")
        found: list[Weight] = []
        while (weight := self.weights.get(f"{container}.{len(found)}.{part}.weight")) is not None:
            found.append(weight)
        return found

    def _add(self, weight: Weight, product: LowRank) -> None:
        self.products.setdefault(weight.sources[0], []).append(replace(product, index=weight.index, rows=weight.rows))

    def _check_factor(self, key: str, info: TensorInfo, expected: tuple[int, ...], name: str, rank: int) -> None:
        self._check_shape(key, info.shape, expected, f"{name} with r = {rank}")

    def _check_shape(self, key: str, found: tuple[int, ...], expected: tuple[int, ...], what: str) -> None:
        if found != expected:
            raise AdapterError(
                f"{self.folder / TENSORS}: {key} has shape {list(found)}, {what} asks for {list(expected)}: "
                "the adapter belongs to another model, or to another adapter_config.json"
            )

    def _check_tied(self, module: str, key: str) -> None:
        if self.tied and module in EMBEDDINGS:
            raise AdapterError(
                f"{self.folder / TENSORS}: {key}: the model ties its embeddings to its head, and peft's merged model is not the "
                "one that was trained: merge it with peft if that is what you want, and give the result"
            )

    def _left_over(self, key: str) -> AdapterError:
        return AdapterError(
            f"{self.folder / TENSORS}: {key} belongs to nothing that {CONFIG} targets in a "
            f"{self.checkpoint.config.get('model_type')} of {self.checkpoint.folder}: the adapter belongs to another model"
        )

    def _check_targets(self) -> None:
        """All that adapter_config.json names has factors, and all that has factors is named there.

        Of a multimodal checkpoint, whose modules may go by several names, only that each name has some.
        """
        config, there = self.config, self._modules_there()
        parameters = {f"{module}.weight" for module in there} | self._stacks_there()
        known = self.adapted if self.checkpoint.multimodal is not None else there | parameters
        names = config.target_modules if isinstance(config.target_modules, tuple) else ()
        for name in (*names, *config.target_parameters):
            if not any(ends_with(one, [name]) for one in known):
                raise AdapterError(f"{self.folder / CONFIG} targets {name}, which the model has not: it is of another model")
        for name in config.modules_to_save:
            if not any(part.endswith(name) for module in self.saved for part in _parents(module)):
                raise AdapterError(f"{self.folder / TENSORS} has no tensor of {name}, which {CONFIG} has in modules_to_save")
        if self.checkpoint.multimodal is not None:
            return
        expected = {module for module in there if config.targets(module)}
        expected |= {parameter for parameter in parameters if ends_with(parameter, config.target_parameters)}
        for name in sorted(expected - self.adapted):
            raise AdapterError(f"{self.folder / TENSORS} has no factors of {name}, which {CONFIG} targets: it is not complete")
        for name in sorted(self.adapted - expected):
            raise AdapterError(f"{self.folder / TENSORS} has factors of {name}, which {CONFIG} does not target")

    def _modules_there(self) -> set[str]:
        """The model's modules with a matrix, by their names in transformers: in its version 5 experts are none."""
        published = any(".block_sparse_moe." in name for name in self.adapted)
        matrices = [name for name, weight in self.weights.items() if len(weight.shape) == 2]
        there = {_in_transformers(name, published=published) for name in matrices}
        return there if published else {module for module in there if ".experts." not in module}

    def _stacks_there(self) -> set[str]:
        containers = {found.group(1) for name in self.weights if (found := EXPERT.match(name.removesuffix(".weight")))}
        return {f"{container}.{part}" for container in containers for part in STACKS}


def _canonical(module: str) -> str:
    """The name of a module in a model here, where one expert's matrices are `mlp.experts.{e}.{gate,up,down}_proj`."""
    module = module.replace(".block_sparse_moe.", ".mlp.")
    found = EXPERT.match(module)
    names = {published: part for part, published in PUBLISHED.items()}
    if found is None or found.group(3) not in names:
        return module
    return f"{found.group(1)}.{found.group(2)}.{names[found.group(3)]}"


def _in_transformers(name: str, *, published: bool) -> str:
    """The reverse for a weight: the name of its module, experts as in transformers 4."""
    module = name.removesuffix(".weight")
    found = EXPERT.match(module)
    if found is not None:
        module = f"{found.group(1)}.{found.group(2)}.{PUBLISHED[found.group(3)]}"
    elif not (published and module.endswith(".mlp.gate")):
        return module
    return module.replace(".mlp.", ".block_sparse_moe.")


def _parents(module: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c"""
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _left_of(factor: Callable[[], Tensor], rows: tuple[int, int], experts: int, e: int) -> Tensor:
    """lora_B [out,r*E] -> rows of expert e's [out,r]"""
    return factor()[slice(*rows), e::experts]


def _right_of(factor: Callable[[], Tensor], experts: int, e: int) -> Tensor:
    """lora_A [E*r,in] -> expert e's [r,in]"""
    rank = factor().shape[0] // experts
    return factor()[e * rank : (e + 1) * rank]
