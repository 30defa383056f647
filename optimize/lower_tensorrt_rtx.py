"""Hub ONNX -> TensorRT-RTX: as for TensorRT, cross-compiled."""

from functools import partial

from alize.nvidia import PACKAGES
from alize.optimize import lower_tensorrt
from alize.optimize.lower_tensorrt import check_structure

__all__ = ["PACKAGE", "check_structure", "lower"]

PACKAGE = PACKAGES["tensorrt-rtx"]
lower = partial(lower_tensorrt.lower, package=PACKAGE)
