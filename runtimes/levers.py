"""What `alize tune` may change, by back-end: options of a runtime configuration and the values that are worth a try here."""

import os
import re
from collections.abc import Mapping

from alize.artifact.manifest import Manifest
from alize.runtimes import kernels
from alize.runtimes.processor import processor_name

__all__ = ["Lever", "fits", "levers"]

Lever = tuple[str, tuple[str | int, ...]]
"""An option, and its values."""

_CHUNKS = (128, 256, 512, 1024)
_GROUPS = (32, 64, 128, 256)


def levers(manifest: Manifest, device: str) -> list[Lever]:
    """In the order in which they are tried: what decides most comes first. Empty where nothing can be chosen."""
    if device != "cpu":
        return []
    if manifest.target.backend == "openvino":
        return [*_openvino(manifest), ("threads", _threads()), ("chunk", _CHUNKS)]
    if manifest.target.backend == "onnxruntime":
        return [("threads", _threads()), ("chunk", _CHUNKS)]
    return []


def fits(options: Mapping[str, str | int | bool]) -> bool:
    """Whether a configuration can be meant: an 8-bit cache loses by being shifted, which only a paged one never is."""
    return options.get("kv_cache_precision") != "u8" or options.get("attention") == "paged"


def _openvino(manifest: Manifest) -> list[Lever]:
    found: list[Lever] = [("attention", ("paged", "stateful"))]
    integers = re.match(r"(?:int8|int4|mixed)\b.*-(?:g(\d+)|channel)", manifest.target.weights)
    if integers and kernels.available() is None:
        found.append(("kernels", ("engine", "alize")))
    if "_bf16" in processor_name():  # avx512_bf16, amx_bf16
        found.append(("inference_precision", ("f32", "bf16")))
    found.append(("kv_cache_precision", ("f16", "u8")))
    if integers:
        largest = int(integers[1] or max(_GROUPS))  # more activations than weights may not share a scale
        found.append(("dynamic_quantization_group", tuple(group for group in _GROUPS if group <= largest)))
    return found


def _threads() -> tuple[int, ...]:
    """0 is the engine's choice; half of the cores where the others are hyperthreads or busy."""
    cores = os.cpu_count() or 1
    return (0, cores // 2) if cores >= 4 else (0,)
