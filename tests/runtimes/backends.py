"""The back-ends that the conformance suite runs against: one entry each, made by one factory.

To add a back-end: write a factory that takes the window of each layer (0 = full attention) and returns a Subject with a tiny
random model of that shape on that engine, and enter it in SUBJECTS with the layouts that it can be built for. Build once a
layout: the suite asks again and again, and the factories here are cached.
"""

import atexit
import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir

from alize.artifact.manifest import ModelInfo
from alize.runtimes.fake import FakeRunner
from alize.runtimes.openvino_paged import PagedEngine
from alize.runtimes.runner import Runner

VOCABULARY = 61
MAX_POSITIONS = 64  # binds the layouts with full attention only

UNIFORM, NARROW, UNEQUAL, MIXED, FULL = (5, 5), (1, 1), (3, 5), (4, 0), (0, 0)
FULL_FIRST, SEVERAL = (0, 1), (3, 0, 5)
EVERY = (UNIFORM, NARROW, UNEQUAL, MIXED, FULL, FULL_FIRST, SEVERAL)


@dataclass(frozen=True)
class Subject:
    """One model on one engine. tolerance: how far logits may be from those of another way to the same tokens.

    held: positions that a runner of it has memory for, layer by layer.   block: positions are forgotten so many at a time.
    """

    info: ModelInfo
    runner: Callable[[int], Runner]
    tolerance: float
    held: Callable[[Any], list[int]]
    block: int = 1


@dataclass(frozen=True)
class Candidate:
    """make: windows -> Subject.   layouts: the windows that the back-end is tried with."""

    make: Callable[[tuple[int, ...]], Subject]
    layouts: tuple[tuple[int, ...], ...]


def model_info(windows: tuple[int, ...]) -> ModelInfo:
    """A tiny model of one layer for each window."""
    return ModelInfo(
        layers=len(windows),
        query_heads=4,
        key_value_heads=2,
        head_size=8,
        hidden_size=32,
        vocab_size=VOCABULARY,
        windows=windows,
        max_positions=MAX_POSITIONS,
        bos_token_id=1,
        eos_token_ids=(2,),
        experts=0,
        experts_per_token=0,
    )


@cache
def make_fake(windows: tuple[int, ...]) -> Subject:
    """Integer arithmetic: every way to the same tokens gives the same bits."""
    return Subject(
        model_info(windows),
        lambda batch: FakeRunner(windows, VOCABULARY, batch=batch),
        0.0,
        lambda runner: [len(cache) for cache in runner._caches[0]],
    )


@cache
def make_torch(windows: tuple[int, ...]) -> Subject:
    """The PyTorch definition with large random weights, so that what one token sees shows in its logits."""
    import torch

    from alize.models.mistral import Config, Model
    from alize.models.session import TorchRunner

    info = model_info(windows)
    config = Config(
        vocab_size=info.vocab_size,
        hidden_size=info.hidden_size,
        intermediate_size=48,
        num_layers=info.layers,
        num_heads=info.query_heads,
        num_kv_heads=info.key_value_heads,
        head_size=info.head_size,
        windows=windows,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_positions=info.max_positions,
        tie_embeddings=False,
        bos_token_id=info.bos_token_id,
        eos_token_ids=info.eos_token_ids,
        pad_token_id=None,
    )
    model = Model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.25, generator=generator)
    return Subject(
        info,
        lambda batch: TorchRunner(model, batch=batch),
        2e-5,
        lambda runner: [key.shape[2] for key, _ in runner._caches[0]],
    )


def held_by_openvino(runner: Any) -> list[int]:
    states = {state.name: state.state.shape[2] for state in runner._request.query_state()}
    return [states[f"past_key_values.{i}.keypresent.{i}.key"] for i in range(len(states) // 2)]


def held_by_onnxruntime(runner: Any) -> list[int]:
    return [cache.shape[2] for cache in runner._caches[::2]]


def held_by_openvino_paged(runner: Any) -> list[int]:
    positions = {layer: memory.pool.blocks * memory.size for memory in runner._engine.memory for layer in memory.layers}
    return [positions[layer] for layer in sorted(positions)]


HELD = {"openvino": held_by_openvino, "openvino-paged": held_by_openvino_paged, "onnxruntime": held_by_onnxruntime}


def make_compiled(target: str, **options: str) -> Callable[[tuple[int, ...]], Subject]:
    """A tiny checkpoint through export and lowering, in the engine's exact mode, with more options of a configuration."""

    @cache
    def make(windows: tuple[int, ...]) -> Subject:
        import tempfile

        from alize.compilers import compiler_for
        from alize.drafting import draft_manifest
        from alize.export.hub import export_hub
        from alize.models.checkpoint import Checkpoint
        from alize.optimize.passes import attentions
        from alize.runtimes.registry import backend_module
        from tests.tiny import tiny_checkpoint

        info = model_info(windows)
        folder = Path(tempfile.mkdtemp(prefix="alize-conformance-"))  # mapped for as long as the engine lives
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        checkpoint = Checkpoint.open(
            tiny_checkpoint(
                folder / "checkpoint",
                window=max(windows),
                layers=info.layers,
                heads=info.query_heads,
                kv_heads=info.key_value_heads,
                hidden_size=info.hidden_size,
                vocab_size=info.vocab_size,
                max_positions=info.max_positions,
            )
        )
        hub = export_hub(checkpoint)
        for node, window in zip(attentions(hub), windows, strict=True):
            node.attributes["window"] = ir.AttrInt64("window", window)
        compiler = compiler_for(target)
        compiler.lowering.lower(hub, folder, weights="fp32")
        draft = dataclasses.replace(draft_manifest(checkpoint, compiler, device="cpu", weights="fp32"), model=info)
        engine = backend_module(target).open(folder, draft, "cpu", {**compiler.accuracy, **options})
        block = engine.memory[0].size if isinstance(engine, PagedEngine) else 1
        return Subject(info, engine.runner, 2e-4, HELD["-".join((target, *options.values()))], block)

    return make


SUBJECTS: dict[str, Candidate] = {
    "fake": Candidate(make_fake, EVERY),
    "torch": Candidate(make_torch, EVERY),
    "openvino": Candidate(make_compiled("openvino"), EVERY),
    "openvino-paged": Candidate(make_compiled("openvino", attention="paged"), EVERY),
    "onnxruntime": Candidate(make_compiled("onnxruntime"), EVERY),
}
