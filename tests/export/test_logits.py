"""Unmodified onnxruntime runs the hub of every kind of checkpoint to the logits of PyTorch."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import pytest

from tests.export.hubs import TOLERANCE, Array, Tiny, chunks, left_padded, make_tiny, onnx_logits, onnx_session, torch_logits
from tests.tiny import KINDS

TOTAL = 17  # more than two windows of every kind


@pytest.fixture(scope="module", params=sorted(KINDS))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", layers=2, **KINDS[request.param])


@pytest.fixture(scope="module")
def session(tiny: Tiny) -> onnxruntime.InferenceSession:
    return onnx_session(tiny.saved)


@pytest.fixture(scope="module")
def inlined(tiny: Tiny) -> onnxruntime.InferenceSession:
    """After onnx's own inliner: no function, no domain of ours."""
    proto = onnx.inliner.inline_local_functions(onnx.load(tiny.saved))
    assert not proto.functions
    assert {node.domain for node in proto.graph.node} == {""}
    return onnx_session(proto.SerializeToString())


def expected(tiny: Tiny, padding: Sequence[int]) -> tuple[tuple[Array, Array, Array], Array]:
    tokens, (mask, positions) = tiny.tokens(len(padding), TOTAL), left_padded(padding, TOTAL)
    return (tokens, mask, positions), torch_logits(tiny.model(), tokens, mask, positions)


@pytest.mark.parametrize("padding", [[0], [0, 4, 11]], ids=["alone", "padded batch"])
@pytest.mark.parametrize("sizes", [[TOTAL], [5, 1, 1, 8, 2], [1] * TOTAL], ids=["at once", "chunks", "token by token"])
def test_logits(tiny: Tiny, session: onnxruntime.InferenceSession, padding: list[int], sizes: list[int]) -> None:
    """Also where a padding row sees no key: both give 0 for its attention."""
    inputs, logits = expected(tiny, padding)
    found = onnx_logits(session, chunks(*inputs, sizes), tiny.no_past(len(padding)))
    assert logits.std() > 1
    np.testing.assert_allclose(found, logits, rtol=0, atol=TOLERANCE)


def test_logits_after_inlining(tiny: Tiny, inlined: onnxruntime.InferenceSession) -> None:
    inputs, logits = expected(tiny, [0, 4, 11])
    found = onnx_logits(inlined, chunks(*inputs, [9, 1, 7]), tiny.no_past(3))
    np.testing.assert_allclose(found, logits, rtol=0, atol=TOLERANCE)


def test_presents_are_the_past_and_the_new(tiny: Tiny, session: onnxruntime.InferenceSession) -> None:
    """A cache may be cut, shifted or recycled: what is stored is what was given, in order."""
    (tokens, mask, positions), _ = expected(tiny, [0])
    (step,) = chunks(tokens[:, :6], mask[:, :6], positions[:, :6], [6])
    first = session.run(["present.0.key", "present.1.value"], {**step, **tiny.no_past(1)})
    past = {name: np.full((1, tiny.config.num_kv_heads, 3, tiny.config.head_size), 0.5, np.float32) for name in tiny.no_past(1)}
    step["attention_mask"] = np.ones((1, 9), np.int64)
    (present,) = session.run(["present.0.key"], {**step, **past})
    assert np.array_equal(present[:, :, :3], past["past_key_values.0.key"])
    np.testing.assert_allclose(present[:, :, 3:], first[0], rtol=0, atol=1e-5)
    assert present.shape[2] == 9 and first[1].shape[2] == 6
