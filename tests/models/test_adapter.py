"""A merged LoRA adapter is what peft's merge_and_unload makes of it, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alize.export.hub import export_hub
from alize.models import adapter as module
from alize.models.checkpoint import Checkpoint
from alize.models.mixtral import PUBLISHED
from alize.models.read_adapter import merge_adapter
from alize.models.reference import Reference
from alize.models.registry import single_weights, weights_of
from alize.optimize import lower_onnxruntime
from tests.models.adapters import ATTENTION, edit_settings, edit_tensors, make_adapter, merged_by_peft
from tests.models.multimodal_checkpoints import multimodal_checkpoint
from tests.models.quantised_checkpoints import gptq, twins
from tests.tiny import tiny_checkpoint

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
DENSE: dict[str, dict[str, Any]] = {
    "attention": {"target_modules": ATTENTION, "r": 4, "lora_alpha": 8},
    "everything": {"target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens"], "r": 3},
    "all linear": {"target_modules": "all-linear", "r": 2, "bias": "all"},
    "an expression": {"target_modules": r".*\.(1|2)\.self_attn\.[qv]_proj", "r": 2},
    "rank-stabilised": {"target_modules": ["q_proj", "down_proj"], "r": 8, "lora_alpha": 24, "use_rslora": True},
    "ranks and alphas by name": {
        "target_modules": ["q_proj", "v_proj"],
        "r": 4,
        "lora_alpha": 3,
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 8, "v_proj": 2},
        "alpha_pattern": {r"^model\.layers\.0\..*": 7, "layers.2.self_attn.v_proj": 20},
        "use_rslora": True,
    },
    "some layers": {"target_modules": ["o_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "all but some": {"target_modules": ATTENTION, "exclude_modules": ["layers.0.self_attn.q_proj"], "layers_to_transform": 0},
    "transposed, it says": {"target_modules": ["q_proj"], "fan_in_fan_out": True},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm", "embed_tokens"]},
    "a whole block": {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    "a parameter": {"target_modules": ["q_proj"], "target_parameters": ["k_proj.weight"]},
}


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., Path]:
    return lambda **options: tiny_checkpoint(tmp_path / "base", **options)


def merged_here(folder: Path, adapter: Path) -> dict[str, Tensor]:
    """Every parameter, in its stored dtype."""
    checkpoint = Checkpoint.open(folder)
    merge_adapter(checkpoint, adapter)
    dtype = checkpoint.tensor(next(iter(checkpoint.tensors))).dtype
    return {name: checkpoint.read(weight, dtype) for name, weight in weights_of(checkpoint).items()}


def parameter(state: dict[str, Tensor], name: str) -> Tensor:
    """A parameter of ours in a state dict of transformers 5, or in one with the tensors of a published Mixtral."""
    if name in state:
        return state[name]
    stack, _, part = name.rpartition(".")
    if f"{stack}.gate_up_proj" in state:
        return state[f"{stack}.gate_up_proj"].chunk(2, dim=1)[0 if part == "gate_proj" else 1]
    published = name.replace(".mlp.", ".block_sparse_moe.")
    if published in state:
        return state[published]
    stack = published.rpartition(".")[0]
    experts = range(sum(key.startswith(f"{stack}.") for key in state) // 3)
    return torch.stack([state[f"{stack}.{e}.{PUBLISHED[part]}.weight"] for e in experts])


def check(folder: Path, adapter: Path, *, tree: bool = False, exact: bool = True) -> int:
    """Compares every parameter's bits; returns how many are not the checkpoint's own.

    exact False: peft makes a product by another call than we do, so that on some processor a last bit may differ here and there
    (rounding once where peft does it twice would change one in five).
    """
    found, state, plain = merged_here(folder, adapter), merged_by_peft(folder, adapter, tree=tree), Checkpoint.open(folder)
    changed = 0
    for name, weight in weights_of(plain).items():
        expected = parameter(state, name)
        assert found[name].dtype == expected.dtype
        if exact:
            assert torch.equal(found[name], expected), name
        else:
            assert (found[name] == expected).float().mean() > 0.98, name
            torch.testing.assert_close(found[name], expected, rtol=2 * torch.finfo(expected.dtype).eps, atol=1e-6)
        changed += not torch.equal(found[name], plain.read(weight, found[name].dtype))
    return changed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str, dtype: str, base: Callable[..., Path], tmp_path: Path) -> None:
    folder = base(dtype=dtype, window=5)
    assert check(folder, make_adapter(folder, tmp_path / "adapter", **DENSE[name])) > 0


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_another_dtype(stored: torch.dtype, base: Callable[..., Path], tmp_path: Path) -> None:
    folder = base(dtype="bfloat16")
    assert check(folder, make_adapter(folder, tmp_path / "adapter", dtype=stored, **DENSE["everything"])) == 23


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("targets", [EXPERTS, EXPERTS[:1], EXPERTS[1:], [*EXPERTS, "mlp.gate.weight"]])
def test_experts_in_one_parameter(
    targets: list[str], packed: bool, dtype: str, base: Callable[..., Path], tmp_path: Path
) -> None:
    """As transformers 5 has them, merged into either layout."""
    folder = base(dtype=dtype, experts=4, packed=packed, layers=2)
    settings = {"r": 3, "lora_alpha": 5, "rank_pattern": {"down_proj": 2}}
    adapter = make_adapter(folder, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=targets, **settings)
    assert check(folder, adapter, exact=False) == 2 * (1 + sum({"up_": 2}.get(target[-7:-4], 1) for target in targets))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_one_by_one(dtype: str, base: Callable[..., Path], tmp_path: Path) -> None:
    """As transformers 4 had them: a linear layer for each matrix of each expert, and the router another."""
    folder = base(dtype=dtype, experts=4, layers=2)
    targets = {"target_modules": ["w1", "w2", "w3", "gate", "k_proj"], "r": 3, "alpha_pattern": {r"experts\.1\.w2": 9}}
    adapter = make_adapter(folder, tmp_path / "adapter", tree=True, **targets)
    assert check(folder, adapter, tree=True) == 2 * 5
    packed = tiny_checkpoint(tmp_path / "packed", dtype=dtype, experts=4, layers=2, packed=True)
    repacked(folder, packed)
    for found, expected in zip(merged_here(packed, adapter).values(), merged_here(folder, adapter).values(), strict=True):
        assert torch.equal(found, expected)


def repacked(published: Path, packed: Path) -> None:
    """Gives the packed checkpoint the published one's numbers."""
    from safetensors.torch import save_file

    here, there = Checkpoint.open(published), Checkpoint.open(packed)
    read = {name: here.read(weight, here.tensor("model.norm.weight").dtype) for name, weight in weights_of(here).items()}
    tensors = {}
    for name in there.tensors:
        stack = name.removesuffix("gate_up_proj")
        both = (read[f"{stack}gate_proj"], read[f"{stack}up_proj"]) if stack != name else ()
        tensors[name] = torch.cat(both, dim=1) if both else read[name].clone()
    for path in packed.glob("model*"):
        path.unlink()
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})


def test_transformers_5_takes_old_experts_for_nearly_the_same(base: Callable[..., Path], tmp_path: Path) -> None:
    """There peft fuses the experts' factors and rounds their product to bfloat16 once more: one unit in the last place."""
    folder = base(dtype="bfloat16", experts=4, layers=1)
    adapter = make_adapter(folder, tmp_path / "adapter", tree=True, target_modules=["w1", "w2", "w3"], r=3)
    found, state = merged_here(folder, adapter), merged_by_peft(folder, adapter)
    plain = Checkpoint.open(folder)
    for part in ("gate_proj", "up_proj", "down_proj"):
        name = f"model.layers.0.mlp.experts.{part}"
        here, there = found[name].float(), parameter(state, name).float()
        added = here - plain.read(weights_of(plain)[name], torch.float32)
        assert 0.05 < (here != there).float().mean() < 0.5
        assert ((here - there).abs() <= 2.0**-7 * (here.abs() + added.abs())).all()


def test_products_are_made_in_blocks(base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = base()
    adapter = make_adapter(folder, tmp_path / "adapter", **DENSE["everything"])
    expected = merged_here(folder, adapter)
    monkeypatch.setattr(module, "BLOCK", 7 * 32)
    seen: list[int] = []
    add = torch.Tensor.__iadd__
    monkeypatch.setattr(torch.Tensor, "__iadd__", lambda self, other: (seen.append(other.numel()), add(self, other))[1])
    for name, values in merged_here(folder, adapter).items():
        torch.testing.assert_close(values, expected[name], rtol=1e-6, atol=1e-6)
    assert max(seen) == 7 * 32


def test_a_quantised_base(tmp_path: Path) -> None:
    """Merged into what it is dequantised to."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
    made = twins(tmp_path / "twins", gptq(), config, layers=2, dtype="float32")
    adapter = make_adapter(made.floats, tmp_path / "adapter", **DENSE["attention"])
    found, expected = merged_here(made.quantised, adapter), merged_here(made.floats, adapter)
    for name in found:
        assert torch.equal(found[name].float(), expected[name].float()), name


def test_a_multimodal_base(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    multimodal_checkpoint(folder, "mistral")
    text = tmp_path / "adapter"
    make_adapter(folder, text, tree=True, target_modules=r".*language_model.*\.(q|down)_proj", r=2)
    state, found = merged_by_peft(folder, text, tree=True), merged_here(folder, text)
    for name, values in found.items():
        assert torch.equal(values, state[f"language_model.{name}"]), name


@pytest.mark.parametrize("options", [{}, {"experts": 4, "top_k": 4}, {"experts": 4, "top_k": 4, "packed": True}])
def test_the_whole_pipeline_reads_the_merged_weights(options: dict[str, Any], base: Callable[..., Path], tmp_path: Path) -> None:
    """The reference, and the hub's way to a target, against a checkpoint that holds the merged tensors."""
    from safetensors.torch import save_file

    folder = base(dtype="bfloat16", layers=2, **options)
    targets = {"target_parameters": EXPERTS, "target_modules": ["v_proj"]} if options else DENSE["everything"]
    adapter = make_adapter(folder, tmp_path / "adapter", **targets)
    checkpoint = Checkpoint.open(folder)
    merge_adapter(checkpoint, adapter)
    whole = tiny_checkpoint(tmp_path / "whole", dtype="bfloat16", layers=2, shards=1, **options)
    tensors = {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    tokens = np.arange(20, dtype=np.int64) * 7 % 250
    results, files = [], []
    for one in (checkpoint, Checkpoint.open(whole)):
        results.append(Reference(one).run([tokens]).logits[0])
        place = tmp_path / f"lowered {len(files)}"
        place.mkdir()
        lower_onnxruntime.lower(export_hub(one), place, weights="fp32")
        files.append({path.name: path.read_bytes() for path in place.iterdir()})
    np.testing.assert_array_equal(*results)
    assert files[0] == files[1]
    assert not np.allclose(results[0], Reference(Checkpoint.open(folder)).run([tokens]).logits[0], atol=0.1)


def test_one_expert_is_merged_at_a_time(base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = base(experts=4, packed=True, layers=1)
    adapter = make_adapter(folder, tmp_path / "adapter", target_modules=["q_proj"], target_parameters=EXPERTS)
    checkpoint = Checkpoint.open(folder)
    merge_adapter(checkpoint, adapter)
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(module.LowRank, "add_to", lambda self, place: seen.append(tuple(place.shape)))
    weight = single_weights(checkpoint)["model.layers.0.mlp.experts.2.up_proj.weight"]
    assert checkpoint.stored(weight)[0].shape == (56, 32)
    assert seen == [(56, 32)] * 2  # gate and up lie in one matrix


def test_identity(base: Callable[..., Path], tmp_path: Path) -> None:
    """The same for any folder; another for other factors, scales or targets. The base keeps its own."""
    folder, seen = base(), list[int]()
    adapter = make_adapter(folder, tmp_path / "adapter", **DENSE["attention"])
    checkpoint = Checkpoint.open(folder)
    before = checkpoint.sha256()
    opened = merge_adapter(checkpoint, adapter)
    first = opened.sha256(advance=seen.append)
    assert sum(seen) == opened.size > 0
    assert checkpoint.sha256() == before == Checkpoint.open(folder).sha256()
    adapter.rename(tmp_path / "renamed")
    edit_settings(tmp_path / "renamed", base_model_name_or_path="/elsewhere", inference_mode=False)

    def identity() -> str:
        return merge_adapter(Checkpoint.open(folder), tmp_path / "renamed").sha256()

    assert identity() == first
    edit_settings(tmp_path / "renamed", lora_alpha=9)
    second = identity()
    edit_tensors(tmp_path / "renamed", lambda tensors: next(iter(tensors.values()))[0].add_(1))
    assert len({first, second, identity()}) == 3
