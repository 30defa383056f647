"""Checkpoints that come quantised: transformers' `quantization_config` of config.json, and the tensors that it describes.

Three formats, fp8, GPTQ and AWQ, are dequantised when a weight is read, a matrix at a time: all others see a float checkpoint.
What they are, where each is defined and what "exactly" means is in docs/checkpoints.md. Anything else is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from alize.errors import UnsupportedModel
from alize.models import prequantised_fp8, prequantised_int
from alize.models.prequantised_rules import KEY, Scheme, refuse
from alize.models.tensor_info import Packed, TensorInfo, View

__all__ = ["KEY", "dequantised", "format_name", "take_quantization"]

METHODS = {"fp8": prequantised_fp8.fp8, "gptq": prequantised_int.gptq, "awq": prequantised_int.awq}
PARTS = (".qweight", ".qzeros", ".weight_scale_inv", ".weight_packed", ".weight_scale")


def take_quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    """Removes `quantization_config` from a config.json, of a multimodal one also from its text model's part, and returns it.

    None where there is none (or null, which stays). Raises UnsupportedModel for one that is no object, and for two that differ.
    """
    text = config.get("text_config")
    holders = [config, text] if isinstance(text, dict) else [config]
    found = [holder.pop(KEY) for holder in holders if holder.get(KEY) is not None]
    for quantization in found:
        if not isinstance(quantization, dict):
            raise refuse(str(quantization), "is no object that says what the format is")
    if len(found) > 1 and found[0] != found[1]:
        raise refuse(_method(found[0]), "config.json holds another one in its text_config")
    return found[0] if found else None


def dequantised(
    quantization: Mapping[str, Any] | None, stored: Mapping[str, TensorInfo], view: View
) -> tuple[dict[str, TensorInfo], dict[str, Packed]]:
    """What the tensors of a checkpoint look like once they are dequantised, and those of them that have to be, by name.

    stored: what the files hold. view: a stored tensor, mapped; only vectors and scales are read here.
    Raises UnsupportedModel for a format that is not known exactly, CorruptCheckpoint for tensors that are not what it says.
    """
    if quantization is None:
        packed_name = next((name for name in stored if name.endswith(PARTS)), None)
        if packed_name is not None:
            raise UnsupportedModel(
                f"{stored[packed_name].file}: tensor {packed_name} is part of a quantised matrix, but config.json has no {KEY} "
                "that says how to read it (older tools write quantize_config.json): put it there, or give the original model"
            )
        return dict(stored), {}
    method = _method(quantization)
    if method not in METHODS:
        raise refuse(method, f"only {', '.join(METHODS)} can be dequantised exactly")
    return METHODS[method](Scheme(method, quantization, stored, view))


def format_name(quantization: Mapping[str, Any]) -> str:
    """A quantization_config that `dequantised` took, in a word: fp8-128x128, fp8-tensor, gptq-int4-g128, awq-int4-channel."""
    method = _method(quantization)
    if method == "fp8":
        block = quantization.get("weight_block_size", [128, 128])
        return "fp8-tensor" if block is None else f"fp8-{block[0]}x{block[1]}"
    size = quantization.get("group_size", 128)
    return f"{method}-int{quantization.get('bits') or prequantised_int.AWQ_BITS}-{'channel' if size == -1 else f'g{size}'}"


def _method(quantization: Mapping[str, Any]) -> str:
    """What transformers would take it for: early bitsandbytes configs do not name themselves."""
    loads = [key for key in ("load_in_4bit", "load_in_8bit") if quantization.get(key)]
    return str(quantization.get("quant_method") or ("bitsandbytes" if loads else "no quant_method"))
