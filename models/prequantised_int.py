"""GPTQ (Frantar et al. 2022, arXiv:2210.17323) and AWQ (Lin et al. 2023, arXiv:2306.00978), as checkpoints hold them.

Both store unsigned integers q, packed into int32 words from the lowest bits up, with a scale and an integer zero point z for each
output and each group of inputs:

    weight[o,i] = scales[g,o] * (q[i,o] - z[g,o])        g = the group of input i

GPTQ (AutoGPTQ, GPTQModel): qweight [in*bits/32,out], a word holds consecutive inputs; qzeros [groups,out*bits/32], a word holds
consecutive outputs, and z is one more than what is stored ("gptq") or just that ("gptq_v2"); g_idx [in] names the groups.
AWQ (AutoAWQ's GEMM version): qweight [in,out/8] and qzeros [groups,out/8], a word holds eight outputs in the order ORDER; z is
stored as it is; g = i // group_size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alize.errors import CorruptCheckpoint
from alize.models.prequantised_rules import FLOATS, Scheme, refuse
from alize.models.tensor_info import Packed, Rows, TensorInfo

__all__ = ["awq", "gptq"]

WORD = 32  # bits
PARTS = ("qweight", "qzeros", "scales", "g_idx")
AWQ_BITS = 4
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs the i-th nibble of a word holds, from the lowest

GPTQ_USED = "bits group_size desc_act sym checkpoint_format format method is_marlin_format pack_dtype dynamic".split()  # noqa: SIM905
AWQ_USED = ("bits", "group_size", "zero_point", "version", "format", "method", "pack_dtype", "backend")
HOW_IT_WAS_MADE = """damp_percent damp_auto_increment true_sequential static_groups act_group_aware hyb_act mse lm_head meta
    dataset tokenizer batch_size pad_token_id block_name_to_quantize module_name_preceding_first_block
    modules_in_block_to_quantize cache_block_outputs model_seqlen model_name_or_path model_file_base_name""".split()  # noqa: SIM905
WHICH_KERNEL = """backend max_input_length use_exllama disable_exllama exllama_config use_cuda_fp16 do_fuse fuse_max_seq_len
    modules_to_fuse""".split()  # noqa: SIM905
AWQ_KERNELS = (
    "autoawq",
    "auto",
    "auto_trainable",
    "gemm",
    "gemm_triton",
    "marlin",
    "machete",
    "exllama_v1",
    "exllama_v2",
    "torch_awq",
)

Outcome = tuple[dict[str, TensorInfo], dict[str, Packed]]


def gptq(scheme: Scheme) -> Outcome:
    """See `prequantised.dequantised`."""
    scheme.only_keys(GPTQ_USED, HOW_IT_WAS_MADE + WHICH_KERNEL)
    bits, size = scheme.only("bits", (4, 8)), scheme.group_size()
    layout = scheme.only("checkpoint_format", ("gptq", "gptq_v2"), default=scheme.config.get("format", "gptq"))
    if scheme.only("format", ("gptq", "gptq_v2"), default=layout) != layout:
        raise scheme.corrupt(f"format = {scheme.config['format']!r} and checkpoint_format = {layout!r} contradict each other")
    scheme.only("is_marlin_format", (False, None))
    _common(scheme)
    dynamic = scheme.config.get("dynamic") or {}
    if any(not str(pattern).startswith("-:") for pattern in dynamic):  # "-:" leaves modules as they are
        raise refuse(scheme.method, f"dynamic = {dynamic!r} gives some modules a format of their own")
    desc_act, sym = (scheme.only(key, (False, True), default=False) for key in ("desc_act", "sym"))
    packed = {}
    for module in _modules(scheme):
        words, outputs = _matrix(scheme, module, "qweight")
        inputs = words * WORD // bits
        groups = -(-inputs // (size or inputs))
        _expect(scheme, module, (words, outputs), (groups, outputs), (groups, outputs * bits // WORD), bits)
        if f"{module}.g_idx" in scheme.stored:
            scheme.expect(f"{module}.g_idx", (inputs,), ("I32",), f"a weight {[outputs, inputs]}")
        elif desc_act:
            raise scheme.corrupt(f"tensor {module}.g_idx is missing, desc_act needs it")
        unpack = Gptq(module, bits, size or inputs, 1 if layout == "gptq" else 0, in_order=not desc_act, symmetric=sym)
        packed[f"{module}.weight"] = _packed(scheme, module, (outputs, inputs), unpack)
    return _outcome(scheme, packed)


def awq(scheme: Scheme) -> Outcome:
    """See `prequantised.dequantised`."""
    scheme.only_keys(AWQ_USED, [*HOW_IT_WAS_MADE, *WHICH_KERNEL, "sym", "desc_act"])
    scheme.only("bits", (AWQ_BITS,), default=AWQ_BITS)
    for key in ("version", "format"):
        scheme.only(key, ("gemm",), default="gemm")
    scheme.only("zero_point", (True,), default=True)
    _common(scheme)
    scheme.only("backend", AWQ_KERNELS, default="auto")  # llm-awq is not one of them: it packs another way
    size = scheme.group_size()
    packed = {}
    for module in _modules(scheme):
        inputs, _ = _matrix(scheme, module, "qweight")
        _, outputs = _matrix(scheme, module, "scales")
        if size and inputs % size:
            raise scheme.corrupt(f"{module}: {inputs} inputs are no multiple of group_size {size}")
        groups, words = inputs // (size or inputs), outputs * AWQ_BITS // WORD
        _expect(scheme, module, (inputs, words), (groups, outputs), (groups, words), AWQ_BITS)
        if f"{module}.g_idx" in scheme.stored:
            raise scheme.corrupt(f"tensor {module}.g_idx belongs to GPTQ, AWQ has none")
        packed[f"{module}.weight"] = _packed(scheme, module, (outputs, inputs), Awq(size or inputs))
    return _outcome(scheme, packed)


def _common(scheme: Scheme) -> None:
    """What GPTQModel writes for either."""
    scheme.only("method", (scheme.method,), default=scheme.method)
    scheme.only("pack_dtype", ("int32",), default="int32")


def _modules(scheme: Scheme) -> list[str]:
    """The modules with a packed matrix, none of whose tensors is missing and none of which has a float matrix too."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in scheme.stored if name.rpartition(".")[2] in PARTS))
    scheme.check_converted([f"{module}.weight" for module in modules])
    for module in modules:
        missing = next((part for part in PARTS[:3] if f"{module}.{part}" not in scheme.stored), None)
        if missing is not None:
            raise scheme.corrupt(f"tensor {module}.{missing} is missing")
        if f"{module}.weight" in scheme.stored:
            raise scheme.corrupt(f"{module} has a quantised matrix and a weight that is not")
    return modules


def _matrix(scheme: Scheme, module: str, part: str) -> tuple[int, int]:
    info = scheme.stored[f"{module}.{part}"]
    if len(info.shape) != 2 or 0 in info.shape:
        raise scheme.corrupt(f"{info.file.name}: tensor {module}.{part} {list(info.shape)} is no matrix")
    return info.shape[0], info.shape[1]


def _expect(
    scheme: Scheme, module: str, qweight: tuple[int, int], scales: tuple[int, int], qzeros: tuple[int, int], bits: int
) -> None:
    why = f"{bits} bits with group_size {scheme.config.get('group_size', 128)}"
    scheme.expect(f"{module}.qweight", qweight, ("I32",), why)
    scheme.expect(f"{module}.scales", scales, FLOATS, why)
    scheme.expect(f"{module}.qzeros", qzeros, ("I32",), why)


def _packed(scheme: Scheme, module: str, shape: tuple[int, int], unpack: Callable[[Mapping[str, Tensor]], Rows]) -> Packed:
    parts = {part: scheme.stored[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in scheme.stored}
    bias = f"{module}.bias"
    size = sum(info.size for info in parts.values()) + (scheme.stored[bias].size if _idle_bias(scheme, module) else 0)
    words = parts["qweight"]
    return Packed(TensorInfo(shape, "F32", words.file, words.start, size), torch.float32, parts, unpack)


def _idle_bias(scheme: Scheme, module: str) -> bool:
    """Some writers give every packed module a bias, zeros where the model has none. Any other is the family's to refuse."""
    info = scheme.stored.get(f"{module}.bias")
    return info is not None and info.dtype in FLOATS and not bool(scheme.view(info).any())


def _outcome(scheme: Scheme, packed: dict[str, Packed]) -> Outcome:
    tensors = {name: matrix.info for name, matrix in packed.items()}
    used = {f"{name.removesuffix('weight')}{part}" for name, matrix in packed.items() for part in matrix.parts}
    used |= {f"{module}.bias" for module in (name.removesuffix(".weight") for name in packed) if _idle_bias(scheme, module)}
    return tensors | {name: info for name, info in scheme.stored.items() if name not in used}, packed


@dataclass(frozen=True)
class Gptq:
    """The arithmetic of one GPTQ matrix. size: inputs a group; offset: what is added to a stored zero point."""

    module: str
    bits: int
    size: int
    offset: int
    in_order: bool
    symmetric: bool

    def __call__(self, parts: Mapping[str, Tensor]) -> Rows:
        """Raises CorruptCheckpoint for contents that the configuration contradicts, or that readers take in different ways."""
        words, scales = parts["qweight"], parts["scales"].float().T.contiguous()  # [out,groups]
        stored = _integers(parts["qzeros"], self.bits).T.int()  # [out,groups]
        self._check_zeros(stored, 2**self.bits - 1)
        group = self._groups(parts, scales.shape[1], words.shape[0] * WORD // self.bits)
        zeros = (stored + self.offset).float()

        def rows(start: int, stop: int) -> Tensor:
            return _scaled(_integers(words[:, start:stop].T, self.bits), zeros[start:stop], scales[start:stop], group)

        return rows

    def _check_zeros(self, stored: Tensor, highest: int) -> None:
        middle = (highest + 1) // 2
        if self.symmetric and bool((stored + self.offset != middle).any()):
            odd = int(stored[stored + self.offset != middle][0])
            raise self._corrupt(
                f"{self.module}.qzeros holds {odd}, which reads as zero point {odd + self.offset}, but sym asks for {middle}: "
                "correct checkpoint_format in config.json (gptq stores one less, gptq_v2 does not), or sym"
            )
        if self.offset and bool((stored == highest).any()):
            raise self._corrupt(
                f"{self.module}.qzeros holds {highest}, which readers of checkpoint_format gptq take for zero point "
                f"{highest + 1} or 0; give the original model, or one saved as gptq_v2"
            )

    def _groups(self, parts: Mapping[str, Tensor], groups: int, inputs: int) -> Tensor:
        in_order = torch.arange(inputs) // self.size
        if "g_idx" not in parts:
            return in_order
        given = parts["g_idx"].long()
        outside = given[(given < 0) | (given >= groups)]
        if outside.numel():
            raise self._corrupt(
                f"{self.module}.g_idx holds {int(outside[0])}, there are groups 0 to {groups - 1}; fetch the checkpoint again"
            )
        if self.in_order and not torch.equal(given, in_order):
            raise self._corrupt(
                f"{self.module}.g_idx is not in order, but desc_act is false, and readers differ in which of them they follow; "
                "give the original model"
            )
        return given

    def _corrupt(self, reason: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"quantization_config (gptq): {reason}")


@dataclass(frozen=True)
class Awq:
    """The arithmetic of one AWQ matrix. size: inputs a group."""

    size: int

    def __call__(self, parts: Mapping[str, Tensor]) -> Rows:
        words, scales = parts["qweight"], parts["scales"].float().T.contiguous()  # [out,groups]
        zeros = self._integers(parts["qzeros"]).float()  # [out,groups]
        group = torch.arange(words.shape[0]) // self.size
        per_word = WORD // AWQ_BITS

        def rows(start: int, stop: int) -> Tensor:
            block = self._integers(words[:, start // per_word : stop // per_word])  # start and stop are multiples of 8
            return _scaled(block, zeros[start:stop], scales[start:stop], group)

        return rows

    def _integers(self, words: Tensor) -> Tensor:
        """int32 [n,words] -> int32 [8*words,n]: a row an output."""
        shifts = torch.tensor([AWQ_ORDER.index(output) * AWQ_BITS for output in range(WORD // AWQ_BITS)], dtype=torch.int32)
        return ((words.T.contiguous().unsqueeze(1) >> shifts[:, None]) & 15).flatten(0, 1)


def _integers(words: Tensor, bits: int) -> Tensor:
    """int32 [n,words] -> uint8 [n,words*32/bits], from the lowest bits up."""
    octets = words.contiguous().view(torch.uint8)  # the lowest first, as safetensors stores them
    return octets if bits == 8 else torch.stack((octets & 15, octets >> 4), dim=-1).flatten(1)


def _scaled(integers: Tensor, zeros: Tensor, scales: Tensor, group: Tensor) -> Tensor:
    """scale * (integer - zero) in float32; the difference is exact. integers [n,in], zeros and scales float32 [n,groups]."""
    return integers.float().sub_(zeros.index_select(1, group)).mul_(scales.index_select(1, group))
