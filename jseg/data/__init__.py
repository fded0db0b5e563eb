"""Data: sources, preparation, and reading. Light to import: what a name needs loads with it."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from jseg.data.check import check_folder
  from jseg.data.dataset import Dataset, Examples, load
  from jseg.data.detections import find_keypoints, objects_from_detections
  from jseg.data.files import FileError
  from jseg.data.files.classes import ClassInfo, voc_colormap
  from jseg.data.files.images import read_image
  from jseg.data.files.instances import Objects
  from jseg.data.files.limits import MAX_PIXELS, check_pixel_limit, pixel_limit
  from jseg.data.files.listing import IMAGE_SUFFIXES, NIFTI_SUFFIXES, Listing, list_files
  from jseg.data.files.nifti import flatten_volume
  from jseg.data.files.preparation import VolumePreparation, read_volume, write_mask
  from jseg.data.files.scientific import SCIENTIFIC_SUFFIXES, read_scientific
  from jseg.data.pipeline import (
    as_channels,
    check_canvas,
    eval_batches,
    resize,
    resize_and_pad,
    train_iterator,
    training_indices,
  )
  from jseg.data.repair import repair_folder
  from jseg.data.scaling import find_ends, parse_scaling, scale
  from jseg.data.sheet import contact_sheet
  from jseg.data.sources.base import Example, Item, ListedSource, Source
  from jseg.data.sources.volumes import foreground_intensities

__all__ = [
  "IMAGE_SUFFIXES",
  "MAX_PIXELS",
  "NIFTI_SUFFIXES",
  "SCIENTIFIC_SUFFIXES",
  "ClassInfo",
  "Dataset",
  "Example",
  "Examples",
  "FileError",
  "Item",
  "ListedSource",
  "Listing",
  "Objects",
  "Source",
  "VolumePreparation",
  "as_channels",
  "check_canvas",
  "check_folder",
  "check_pixel_limit",
  "contact_sheet",
  "eval_batches",
  "find_ends",
  "find_keypoints",
  "flatten_volume",
  "foreground_intensities",
  "list_files",
  "load",
  "objects_from_detections",
  "parse_scaling",
  "pixel_limit",
  "read_image",
  "read_scientific",
  "read_volume",
  "repair_folder",
  "resize",
  "resize_and_pad",
  "scale",
  "train_iterator",
  "training_indices",
  "voc_colormap",
  "write_mask",
]

_HOMES = {
  "dataset": ("Dataset", "Examples", "load"),
  "detections": ("find_keypoints", "objects_from_detections"),
  "check": ("check_folder",),
  "sheet": ("contact_sheet",),
  "files": ("FileError",),
  "files.limits": ("MAX_PIXELS", "check_pixel_limit", "pixel_limit"),
  "files.listing": ("IMAGE_SUFFIXES", "NIFTI_SUFFIXES", "Listing", "list_files"),
  "files.classes": ("ClassInfo", "voc_colormap"),
  "files.images": ("read_image",),
  "files.instances": ("Objects",),
  "files.scientific": ("SCIENTIFIC_SUFFIXES", "read_scientific"),
  "scaling": ("find_ends", "parse_scaling", "scale"),
  "sources.base": ("Example", "Item", "ListedSource", "Source"),
  "sources.volumes": ("foreground_intensities",),
  "files.nifti": ("flatten_volume",),
  "files.preparation": ("VolumePreparation", "read_volume", "write_mask"),
  "repair": ("repair_folder",),
  "pipeline": (
    "as_channels",
    "check_canvas",
    "eval_batches",
    "resize",
    "resize_and_pad",
    "train_iterator",
    "training_indices",
  ),
}


def __getattr__(name: str) -> object:
  # Lazy: the networks and weights need the classes, not TFDS, Grain and OpenCV.
  for module, names in _HOMES.items():
    if name in names:
      return getattr(importlib.import_module(f"jseg.data.{module}"), name)
  raise AttributeError(f"module 'jseg.data' has no attribute {name!r}")


def __dir__() -> list[str]:
  return __all__
