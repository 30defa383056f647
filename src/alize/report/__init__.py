"""report.html: a validation as one page that shows by how much, and where, an artifact differs from PyTorch."""

from alize.report.page import render

__all__ = ["render"]
