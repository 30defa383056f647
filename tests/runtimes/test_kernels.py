"""alize's own kernels: one node of a graph against NumPy, and where they cannot be used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from alize.errors import BackendUnavailable
from alize.runtimes import kernels, openvino_kernels
from alize.runtimes.openvino_kernels import ROUNDED_TOKENS

needs_kernels = pytest.mark.skipif(kernels.available() is not None, reason=str(kernels.available()))

SHAPES = [  # bits, columns of a group, rows, columns
    (8, 96, 100, 96),
    (8, 32, 64, 160),
    (8, 128, 33, 256),
    (4, 32, 64, 96),
    (4, 64, 160, 192),
    (4, 128, 32, 384),
    (4, 160, 77, 160),
]


class Matrix:
    """Random integers and scales; `weights` float32 [rows,columns] is what they stand for."""

    def __init__(self, rows: int, columns: int, bits: int, group: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        limit = 1 << (bits - 1)
        whole = random.integers(-limit, limit, (rows, columns)).astype(np.int8)
        self.scales = (random.random((rows, columns // group)) / limit + 0.5 / limit).astype(np.float16)
        self.weights = (whole.reshape(rows, -1, group) * self.scales.astype(np.float32)[:, :, None]).reshape(rows, columns)
        nibbles = whole.view(np.uint8) & 15
        self.values = whole.view(np.uint8) if bits == 8 else nibbles[:, 0::2] | nibbles[:, 1::2] << 4
        self.numbers = [self.values.ctypes.data, self.scales.ctypes.data, rows, columns, group, bits]


def run(form: str, matrices: Sequence[Matrix], x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    import openvino
    from openvino import opset13 as ops

    factory = openvino_kernels.node_factory(kernels.library())
    source = ops.parameter([-1, -1, x.shape[-1]], openvino.Type.f32)
    numbers = [number for matrix in matrices for number in matrix.numbers]
    node = factory.create("IntegerLinear", [source], {"form": form, "matrices": numbers, "rounded_tokens": ROUNDED_TOKENS})
    compiled = openvino.Core().compile_model(openvino.Model(list(node.outputs()), [source]), "CPU")
    return [np.array(values) for values in compiled([x]).values()]


def expected(form: str, matrices: Sequence[Matrix], x: NDArray[np.float32]) -> list[NDArray[Any]]:
    products = [x.astype(np.float64) @ matrix.weights.T.astype(np.float64) for matrix in matrices[:2]]
    if form == "apart":
        return products
    gated = products[0] / (1 + np.exp(-products[0])) * products[1]
    return [gated if form == "gated" else gated @ matrices[2].weights.T.astype(np.float64)]


@needs_kernels
@pytest.mark.parametrize("form", ["apart", "gated", "mlp"])
@pytest.mark.parametrize(("bits", "group", "rows", "columns"), SHAPES)
def test_products(form: str, bits: int, group: int, rows: int, columns: int) -> None:
    """Up to ROUNDED_TOKENS with activations in 8 bits, more of them in bfloat16 where the processor can."""
    if form == "mlp" and rows % 32:
        pytest.skip("the last matrix would have other columns than a product takes")
    matrices = [Matrix(rows, columns, bits, group, seed) for seed in (0, 1)]
    if form == "mlp":
        matrices.append(Matrix(50, rows, 4, 32, 2))
    for tokens in (1, 3, ROUNDED_TOKENS + 1, 70):
        x = np.random.default_rng(tokens).standard_normal((tokens, 1, columns)).astype(np.float32)
        found, wanted = run(form, matrices, x), expected(form, matrices, x)
        assert [part.shape for part in found] == [part.shape for part in wanted]
        for mine, right in zip(found, wanted, strict=True):
            assert np.sqrt(np.mean((mine - right) ** 2)) < 0.015 * np.std(right)


@needs_kernels
@pytest.mark.parametrize("form", ["apart", "mlp"])
def test_a_token_alone_has_the_bits_that_it_has_among_others(form: str) -> None:
    matrices = [Matrix(64, 96, 4, 32, seed) for seed in (0, 1)] + [Matrix(40, 64, 8, 64, 2)]
    x = np.random.default_rng(0).standard_normal((ROUNDED_TOKENS, 1, 96)).astype(np.float32)
    chosen = matrices if form == "mlp" else matrices[:2]
    together = run(form, chosen, x)
    for token in range(ROUNDED_TOKENS):
        for whole, part in zip(together, run(form, chosen, x[token : token + 1]), strict=True):
            np.testing.assert_array_equal(whole[token], part[0])


@needs_kernels
def test_rows_of_zeros_give_zeros() -> None:
    found = run("apart", [Matrix(64, 96, 8, 96, 0)], np.zeros((2, 1, 96), np.float32))
    assert not found[0].any()


@needs_kernels
@pytest.mark.parametrize("ids", [[[3, 0], [99, 3]], [[]]])
def test_rows_of_a_table(ids: list[list[int]]) -> None:
    import openvino
    from openvino import opset13 as ops

    table = Matrix(100, 96, 8, 96, 0)
    source = ops.parameter([-1, -1], openvino.Type.i64)
    node = openvino_kernels.node_factory(kernels.library()).create("IntegerRows", [source], {"matrices": table.numbers})
    compiled = openvino.Core().compile_model(openvino.Model([node.output(0)], [source]), "CPU")
    given = np.array(ids, np.int64)
    np.testing.assert_array_equal(compiled([given])[0], table.weights[given])


def test_where_they_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "processor_name", lambda: "some cpu avx2")
    assert kernels.available() == "the processor has no AVX512-VNNI"
    monkeypatch.setattr(kernels, "processor_name", lambda: "some cpu avx512_vnni")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"there is no C\+\+ compiler: install g\+\+ or clang\+\+, or name one in CXX"):
        kernels.library()


def test_what_the_compiler_says_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And nothing half-made stays."""
    broken = tmp_path / "broken-compiler"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such thing as C++" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setattr(kernels, "processor_name", lambda: "some cpu avx512_vnni")
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("ALIZE_KERNELS_DIR", str(tmp_path / "kernels"))
    with pytest.raises(BackendUnavailable, match=r"broken-compiler` said: no such thing as C\+\+"):
        kernels.library()
    assert not [file for file in (tmp_path / "kernels").rglob("*") if file.is_file()]
