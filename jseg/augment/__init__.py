"""Random augmentation on the device: of images, of volumes, and of images with their objects."""

from jseg.augment.base import Augment, Example
from jseg.augment.image import arguments, make_augment
from jseg.augment.objects import instance_arguments, make_instance_augment

__all__ = [
  "Augment",
  "Example",
  "arguments",
  "instance_arguments",
  "make_augment",
  "make_instance_augment",
]
