"""Semantic segmentation: one class per pixel."""

from jseg.tasks.semantic.task import SemanticTask

__all__ = ["SemanticTask"]
