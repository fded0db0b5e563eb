"""Data: sources, preparation, reading, and augmentation on the device."""

from jseg.data.augment import make_augment
from jseg.data.augment_instances import make_instance_augment
from jseg.data.builder import Dataset, Examples, load
from jseg.data.check import check_folder, contact_sheet
from jseg.data.classes import ClassInfo, voc_colormap
from jseg.data.files import IMAGE_SUFFIXES, NIFTI_SUFFIXES, FileError
from jseg.data.images import read_image
from jseg.data.instances import Objects, find_keypoints, found_objects
from jseg.data.normalize import normalize, prepare
from jseg.data.pipeline import as_channels, check_canvas, eval_batches, fit, train_iterator
from jseg.data.volumes import flatten_volume, read_volume, write_mask

__all__ = [
  "IMAGE_SUFFIXES",
  "NIFTI_SUFFIXES",
  "ClassInfo",
  "Dataset",
  "Examples",
  "FileError",
  "Objects",
  "as_channels",
  "check_canvas",
  "check_folder",
  "contact_sheet",
  "eval_batches",
  "find_keypoints",
  "fit",
  "flatten_volume",
  "found_objects",
  "load",
  "make_augment",
  "make_instance_augment",
  "normalize",
  "prepare",
  "read_image",
  "read_volume",
  "train_iterator",
  "voc_colormap",
  "write_mask",
]
