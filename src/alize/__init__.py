"""alize compiles Mistral-family language models for the machine that will run them, and proves each artifact.

    alize.build(source, output=..., target=...)   a checkpoint to a sealed artifact (needs alize[build])
    alize.load(path)                              an artifact to a Model, ready to run (needs no PyTorch)
    alize.errors                                  everything that either raises on purpose

Importing alize imports nothing else: each name is fetched at its first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alize import errors
    from alize.building import build
    from alize.runtimes.model import load

__all__ = ["__version__", "build", "errors", "load"]

__version__ = "0.1.0"

_HOMES = {"build": "alize.building", "load": "alize.runtimes.model"}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("alize.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'alize' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
