"""Of experts with equal logits the lower index is chosen: OpenVINO's TopK promises that only where it is asked to be stable."""

import re
from typing import Any

from alize.errors import LoweringFailed

__all__ = ["lower_index_first"]

_CHOICE = re.compile(r"layers\.(\d+)\.experts")


def lower_index_first(model: Any) -> int:
    """Makes the TopK of each layer's router stable. model: openvino.Model, changed in place. Returns the layers changed.

    ONNX says that equal values come by their index; OpenVINO's conversion (2026.4) leaves it open, and its CPU plugin takes
    others even of 4 equal ones.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() == "TopK" and any(_CHOICE.fullmatch(name) for name in node.output(1).get_names()):
            node.set_attribute("stable", True)
            count += 1
    if not count:
        raise LoweringFailed("lower_index_first: no TopK of the model chooses experts")
    return count
