"""Segmentation into classes that may overlap."""

from jseg.tasks.multilabel.task import MultilabelTask

__all__ = ["MultilabelTask"]
