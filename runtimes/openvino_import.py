"""Imports openvino without its converter of models, which takes as long as all the rest and which running one never needs."""

import importlib
import sys
from typing import Any

__all__ = ["import_openvino"]

_CONVERTER = "openvino.tools.ovc"


def import_openvino() -> None:
    """Nothing where it was imported before. `openvino.convert_model` then comes at its first use. Raises ImportError."""
    if "openvino" in sys.modules:
        return
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # openvino does without it where it cannot be imported
    try:
        openvino = importlib.import_module("openvino")
    finally:
        del sys.modules[_CONVERTER]
    openvino.__getattr__ = _later  # type: ignore[method-assign]


def _later(name: str) -> Any:
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    return importlib.import_module(_CONVERTER).convert_model
