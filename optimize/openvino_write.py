"""Writes an OpenVINO model's .xml and .bin so that the same model gives the same bytes, and a short write is an error."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alize.errors import OutputError

__all__ = ["name_by_order", "write_ir"]

# The hub's names begin in lower case, the engine's types in upper case. ".0": an output folded to a constant of its own.
_COUNTED = re.compile(r"([A-Z]\w*?)_\d+(?:\.\d+)?")


def write_ir(model: Any, path: Path, *, save: Callable[[Any, Path], None]) -> None:
    """Names the nodes of an openvino.Model by their order, then writes it by `save`, one of openvino's own functions.

    Raises OutputError: the engine throws away what the system said of a failed write, so that it cannot be told from others.
    """
    name_by_order(model)
    try:
        save(model, path)
    except RuntimeError as error:
        raise OutputError(
            f"openvino could not write {path.name} ({error}): the disk is full, or over a quota or file size limit; "
            "free space or choose another disk"
        ) from error


def name_by_order(model: Any) -> int:
    """Numbers the nodes that nobody named, and the tensors named after them, in the order of computation. In place.

    OpenVINO names such a node by its type and a number that counts every node of the process: Constant_784 in the first
    build of a process is Constant_61364 in the second. Returns how many names it changed.
    """
    renamed: dict[str, str] = {}
    nodes = model.get_ordered_ops()
    for node in nodes:
        name = node.get_friendly_name()
        counted = _COUNTED.fullmatch(name)
        if counted:
            renamed[name] = f"{counted[1]}_{len(renamed)}"
            node.set_friendly_name(renamed[name])
    for node in nodes:
        for output in node.outputs():
            names = output.get_tensor().get_names()
            if names & renamed.keys():
                output.get_tensor().set_names({renamed.get(name, name) for name in names})
    return len(renamed)
