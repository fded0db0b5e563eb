"""Data: sources, preparation, reading, and augmentation on the device."""

from jseg.data.augment import make_augment
from jseg.data.builder import Dataset, Examples, load
from jseg.data.check import check_folder, contact_sheet
from jseg.data.classes import ClassInfo, voc_colormap
from jseg.data.files import FileError
from jseg.data.images import read_image
from jseg.data.normalize import normalize, prepare
from jseg.data.pipeline import as_channels, check_canvas, eval_batches, fit, train_iterator
from jseg.data.volumes import read_volume, write_mask

__all__ = [
  "ClassInfo",
  "Dataset",
  "Examples",
  "FileError",
  "as_channels",
  "check_canvas",
  "check_folder",
  "contact_sheet",
  "eval_batches",
  "fit",
  "load",
  "make_augment",
  "normalize",
  "prepare",
  "read_image",
  "read_volume",
  "train_iterator",
  "voc_colormap",
  "write_mask",
]
