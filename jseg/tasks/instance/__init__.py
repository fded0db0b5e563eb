"""Instance segmentation: one mask per object."""

from jseg.tasks.instance.task import InstanceTask

__all__ = ["InstanceTask"]
