"""Files that let other programs open a TensorRT artifact: none reads a plan without knowing its inputs."""

from pathlib import Path

from alize.models.checkpoint import Checkpoint

__all__ = ["write"]


def write(checkpoint: Checkpoint, folder: Path) -> None:
    """Nothing."""
