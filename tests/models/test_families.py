"""Logits against transformers' own models, for every kind of checkpoint of every family."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alize.models import ministral3
from alize.models.checkpoint import Checkpoint
from alize.models.mistral import Config, Model
from alize.models.registry import family_for
from tests.models.oracle import TOLERANCE, Pair, padded_inputs
from tests.tiny import KINDS, tiny_checkpoint


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", **KINDS[request.param]))


def expected_logits(pair: Pair, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = pair.oracle(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_kind_is_read_as_written(pair: Pair) -> None:
    theirs, ours = pair.oracle.config, pair.config
    head_size = theirs.head_dim or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.head_size, ours.rope_theta) == (head_size, theirs.rope_parameters["rope_theta"])
    assert (ours.num_experts, ours.experts_per_token) == (
        getattr(theirs, "num_local_experts", 0),
        getattr(theirs, "num_experts_per_tok", 0),
    )
    kinds = getattr(theirs, "layer_types", None) or [None] * ours.num_layers
    assert ours.windows == tuple(0 if kind == "full_attention" else theirs.sliding_window or 0 for kind in kinds)
    assert ours.max_positions == theirs.max_position_embeddings


def test_parameter_names_are_hugging_face_names(pair: Pair) -> None:
    """But for the experts' gate and up, which transformers holds in one tensor."""
    theirs = {name: tuple(p.shape) for name, p in pair.oracle.named_parameters()}
    for name in [name for name in theirs if name.endswith(".gate_up_proj")]:
        count, both, hidden = theirs.pop(name)
        theirs |= {name.replace("gate_up", part): (count, both // 2, hidden) for part in ("gate", "up")}
    assert {name: tuple(p.shape) for name, p in pair.ours.named_parameters()} == theirs


def mistakes(config: Config) -> dict[str, Config]:
    """Configurations that load the same weights and are not the same model."""
    window = max(config.windows)
    windows = [8] if window == 0 else [window + 1] if window == 1 else [window - 1, window + 1]
    wrong = {f"window {value}": replace(config, windows=tuple(w and value for w in config.windows)) for value in windows}
    if window == 0:
        wrong = {"a window": replace(config, windows=(8,) * config.num_layers)}
    elif 0 in config.windows:
        wrong["layers the other way round"] = replace(config, windows=config.windows[1:] + config.windows[:1])
    if isinstance(config, ministral3.Config):
        wrong["query scale"] = replace(config, query_beta=config.query_beta / 2)
        wrong["later scale"] = replace(config, yarn=replace(config.yarn, original_max_positions=9))
        wrong["attention factor"] = replace(config, yarn=replace(config.yarn, attention_factor=1.5))
        wrong["truncate"] = replace(config, yarn=replace(config.yarn, truncate=not config.yarn.truncate))
    if config.num_experts:
        wrong["one expert more"] = replace(config, experts_per_token=config.experts_per_token + 1)
    return wrong | ({} if window == 1 else {"theta": replace(config, rope_theta=1.5 * config.rope_theta)})


@torch.no_grad()
def test_a_mistake_would_be_seen(pair: Pair) -> None:
    """Logits of these checkpoints are spread, and a window off by one moves them by far more than the tolerance."""
    tokens, (mask, positions) = pair.tokens(1, 24), padded_inputs([0], 24)
    logits, _ = pair.ours(tokens, positions, mask, pair.no_past(1))
    assert logits.std() > 1
    for name, config in mistakes(pair.config).items():
        model = type(pair.ours)(config)
        model.load_state_dict(pair.ours.state_dict())
        assert (model(tokens, positions, mask, pair.no_past(1))[0] - logits).abs().max() > 100 * TOLERANCE, name


@torch.no_grad()
def test_prefill_across_the_window(pair: Pair) -> None:
    window = pair.window or 8
    for length in sorted({1, max(1, window - 1), window, window + 1, 2 * window + 3}):
        tokens = pair.tokens(2, length, seed=length)
        mask, positions = padded_inputs([0, 0], length)
        logits, presents = pair.ours(tokens, positions, mask, pair.no_past(2))
        assert_close(logits, expected_logits(pair, tokens, mask, positions))
        assert presents[0][0].shape == (2, pair.config.num_kv_heads, length, pair.config.head_size)


@torch.no_grad()
def test_left_padding(pair: Pair) -> None:
    """Rows of unequal length; positions where a row sees no key are not compared."""
    mask, positions = padded_inputs([0, 4, 11], 19)
    tokens = pair.tokens(3, 19)
    logits, _ = pair.ours(tokens, positions, mask, pair.no_past(3))
    real = mask.bool()
    assert_close(logits[real], expected_logits(pair, tokens, mask, positions)[real])
    assert bool(logits.isfinite().all())


@torch.no_grad()
@pytest.mark.parametrize("padding", [[0], [0, 6]], ids=["plain", "left-padded"])
@pytest.mark.parametrize("chunk", [1, 3, 17])
def test_cached_decode_in_chunks(pair: Pair, chunk: int, padding: list[int]) -> None:
    total = 37
    mask, positions = padded_inputs(padding, total)
    tokens = pair.tokens(len(padding), total)
    past, parts = pair.no_past(len(padding)), []
    for start in range(0, total, chunk):
        new = slice(start, start + chunk)
        logits, past = pair.ours(tokens[:, new], positions[:, new], mask[:, : start + chunk], past)
        parts.append(logits)
    real = mask.bool()
    assert_close(torch.cat(parts, dim=1)[real], expected_logits(pair, tokens, mask, positions)[real])


@torch.no_grad()
def test_positions_far_beyond_the_first(pair: Pair) -> None:
    """Angles are computed, not looked up: a position in the ten thousands is like any other."""
    tokens, (mask, positions) = pair.tokens(1, 9), padded_inputs([0], 9)
    positions = positions + 30_000
    logits, _ = pair.ours(tokens, positions, mask, pair.no_past(1))
    assert_close(logits, expected_logits(pair, tokens, mask, positions))


@cache
def _baby(window: int) -> Config:
    return Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_size=8,
        windows=(window,) * 2,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_positions=64,
        tie_embeddings=False,
        bos_token_id=1,
        eos_token_ids=(2,),
        pad_token_id=None,
    )


@pytest.mark.parametrize("window", [0, 4])
def test_traces_with_dynamic_shapes_without_any_weight(window: int) -> None:
    """torch.export under fake tensors: B, S and P stay symbols, attention is one node a layer."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.export import Dim, export
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    batch, new, past, total = Dim("B"), Dim("S"), Dim("P"), Dim("T")
    pair_dims = ({0: batch, 2: past}, {0: batch, 2: past})
    with FakeTensorMode(shape_env=ShapeEnv()):
        model = Model(_baby(window))
        ids = torch.zeros(2, 3, dtype=torch.int64)
        cache = [(torch.zeros(2, 1, 5, 8), torch.zeros(2, 1, 5, 8)) for _ in range(2)]
        dims = ({0: batch, 1: new}, {0: batch, 1: new}, {0: batch, 1: total}, [pair_dims] * 2)
        program = export(model, (ids, ids, torch.zeros(2, 8, dtype=torch.int64), cache), dynamic_shapes=dims, strict=False)
    nodes = [node for node in program.graph.nodes if "sliding_window_attention" in str(node.target)]
    assert len(nodes) == 2
    assert all(node.args[6] == window for node in nodes)
    assert not any("sym_constrain" in str(node.target) or "nonzero" in str(node.target) for node in program.graph.nodes)
    constants = [value for value in program.constants.values() if isinstance(value, Tensor)]
    assert [tuple(value.shape) for value in constants] == [(4,)]  # the inverse frequencies, with their real values
    assert constants[0].tolist()[0] == 1.0


@torch.no_grad()
def test_traced_program_computes_the_same_for_other_sizes(tmp_path: Path) -> None:
    pair = Pair(tiny_checkpoint(tmp_path / "model", window=4, layers=2))
    past_dim, batch, new, total = (torch.export.Dim(name) for name in ("P", "B", "S", "T"))
    shape = (2, pair.config.num_kv_heads, 5, pair.config.head_size)
    example = [(torch.randn(shape), torch.randn(shape)) for _ in range(2)]
    mask, positions = padded_inputs([0, 0], 8)
    positions = positions[:, 5:].contiguous()  # a view's strides would become guards
    pair_dims = ({0: batch, 2: past_dim}, {0: batch, 2: past_dim})
    program = torch.export.export(
        pair.ours,
        (pair.tokens(2, 3), positions, mask, example),
        dynamic_shapes=({0: batch, 1: new}, {0: batch, 1: new}, {0: batch, 1: total}, [pair_dims] * 2),
        strict=False,
    )
    traced, tokens = program.module(), pair.tokens(3, 13)
    mask, positions = padded_inputs([0, 2, 5], 13)
    past, parts = pair.no_past(3), []
    for part in (slice(0, 9), slice(9, 10), slice(10, 13)):
        logits, past = traced(tokens[:, part], positions[:, part], mask[:, : part.stop], past)
        parts.append(logits)
    expected = pair.ours(tokens, positions, mask, pair.no_past(3))[0]
    torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], expected[mask.bool()], rtol=0, atol=TOLERANCE)


def test_every_parameter_has_its_sources(pair: Pair) -> None:
    checkpoint = Checkpoint.open(pair.folder)
    weights = family_for(checkpoint.config).convert_weights(pair.config, checkpoint)
    assert {name: weight.shape for name, weight in weights.items()} == {
        n: tuple(p.shape) for n, p in pair.ours.named_parameters()
    }
    assert all(
        weight.sources == (name,) for name, weight in weights.items() if ".mlp." not in name or not pair.config.num_experts
    )
    assert ("lm_head.weight" in weights) != pair.config.tie_embeddings
    assert {source for weight in weights.values() for source in weight.sources} == checkpoint.tensors.keys()


def english(folder: Path, count: int) -> Tensor:
    """The first `count` tokens of a text, int64 [1,count]. Random tokens would not do: they bring a real model to places
    where two float32 runs of one definition, or float32 and float64, are 5e-4 apart."""
    from tokenizers import Tokenizer

    text = (
        "The wind that blows from the north-east across the Atlantic is called the trade wind. Sailors have known it for ages. "
    )
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text * (count // 20 + 1)).ids
    return torch.tensor([ids[:count]])


@pytest.mark.demo
@torch.no_grad()
@pytest.mark.parametrize("checkpoint", ["demo_checkpoint", "windowed_demo_checkpoint", "mixtral_demo_checkpoint"])
def test_demo_model(checkpoint: str, request: pytest.FixtureRequest) -> None:
    pair = Pair(request.getfixturevalue(checkpoint))
    total = 2 * (pair.window or 64) + 3
    mask, positions = padded_inputs([0], total)
    tokens = english(pair.folder, total)
    expected = expected_logits(pair, tokens, mask, positions)
    assert_close(pair.ours(tokens, positions, mask, pair.no_past(1))[0], expected)
    past, parts = pair.no_past(1), []
    for start in range(0, total, 17):
        new = slice(start, start + 17)
        logits, past = pair.ours(tokens[:, new], positions[:, new], mask[:, : start + 17], past)
        parts.append(logits)
    assert_close(torch.cat(parts, dim=1), expected)
