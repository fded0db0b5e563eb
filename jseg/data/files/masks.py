"""Mask files: raw values or colors in, train ids out."""

from pathlib import Path

import numpy as np
from PIL import ImageOps

from jseg.data.files import FileError
from jseg.data.files.classes import ClassInfo
from jseg.data.files.images import open_checked
from jseg.types import IGNORE

_BINARY_FIX = (
  'If 255 stands for the second class, say so in classes.json: "mask_values": [0, 255], '
  '"ignore_label": null'
)


def read_mask(data: bytes, where: Path | str) -> np.ndarray:
  """Decodes a mask file to its raw values.

  Args:
    data: the file's bytes.
    where: name of the file, for messages.

  Returns:
    int32 [h w] of values (palette images give their indices), or uint8 [h w 3] of colors.

  Raises:
    FileError: the file is damaged or of a kind that cannot hold class values.
  """
  image = open_checked(data, where)
  if image.format in ("JPEG", "MPO"):
    raise FileError(
      "values",
      where,
      "a JPEG cannot be a mask: its compression changes the values at every border",
      "Export the masks again as PNG",
    )
  if image.mode in ("F", "CMYK", "YCbCr", "LAB", "HSV"):
    raise FileError(
      "values", where, f"mode {image.mode} cannot hold class values", "Save it as 8-bit PNG"
    )
  image = ImageOps.exif_transpose(image)
  if image.mode in ("RGB", "RGBA"):
    return np.asarray(image)[..., :3]
  if image.mode in ("LA", "PA"):
    return np.asarray(image)[..., 0].astype(np.int32)
  return np.asarray(image).astype(np.int32)


def make_label(
  raw: np.ndarray, classes: ClassInfo, table: np.ndarray, where: Path | str
) -> np.ndarray:
  """Translates raw mask values to train ids.

  Args:
    raw: what `read_mask` returned.
    classes: the classes.
    table: int16 [65536], see `ClassInfo.table`.
    where: name of the file, for messages.

  Returns:
    uint8 [h w], IGNORE where void.

  Raises:
    FileError: values or colors occur that no class has, with their pixel counts.
  """
  if raw.ndim == 3 and classes.instance:
    raise FileError(
      "values",
      where,
      "a color image cannot be a mask of instance ids",
      "Save the ids in one channel of 8 or 16 bits, as PNG",
    )
  if raw.ndim == 3:
    return _label_from_colors(raw, classes, where)
  outside = (raw < 0) | (raw >= table.size)
  ids = table[np.where(outside, 0, raw)]
  unknown = outside | (ids < 0)
  if unknown.any():
    values, counts = np.unique(raw[unknown], return_counts=True)
    found = set(np.unique(raw).tolist())
    fix = "Add the missing class to classes.json, or give such pixels the ignore value"
    if classes.ignore_label is not None:
      fix += f" {classes.ignore_label}"
    if found <= {0, 255} and len(classes.names) == 2:
      fix = _BINARY_FIX
    raise FileError(
      "values",
      where,
      f"{_listing('value', values.tolist(), counts)} of no class; {_describe(classes)}",
      fix,
    )
  return ids.astype(np.uint8)


def check_binary(counts: np.ndarray, classes: ClassInfo, where: Path | str) -> None:
  """Refuses a split whose 0/255 masks would train on nothing but the first class.

  Args:
    counts: int64 [256], pixels of each train id over the split.
    classes: the classes.
    where: name of the split's folder, for the message.

  Raises:
    FileError: there are two classes, the second never occurs, and the value 255 does.
  """
  plain = classes.mask_values is None and classes.ignore_label == 255 and not classes.instance
  if plain and len(classes.names) == 2 and counts[1] == 0 and counts[IGNORE] > 0:
    raise FileError(
      "values",
      where,
      f"the masks hold only 0 and 255, so class {classes.names[1]!r} never occurs and "
      f"{counts[IGNORE]} pixels of value 255 would be ignored",
      _BINARY_FIX,
    )


def _label_from_colors(raw: np.ndarray, classes: ClassInfo, where: Path | str) -> np.ndarray:
  code = raw.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
  ids = np.full(code.shape, -1, np.int16)
  colors = list(enumerate(classes.palette.tolist()))
  if classes.ignore_color is not None:
    colors.append((IGNORE, classes.ignore_color))
  for i, (red, green, blue) in colors:
    ids[code == (red * 65536 + green * 256 + blue)] = i
  unknown = ids < 0
  if unknown.any():
    found, counts = np.unique(code[unknown], return_counts=True)
    values = [(c >> 16, c >> 8 & 255, c & 255) for c in found.tolist()]
    gray = (raw == raw[..., :1]).all()
    raise FileError(
      "values",
      where,
      f"a color mask with {_listing('color', values, counts)} that the palette lacks",
      "Its three channels are equal: save one of them as the mask"
      if gray
      else "Add the class and its color to classes.json, or name the color of void ignore_color",
    )
  return ids.astype(np.uint8)


def _listing(noun: str, values: list, counts: np.ndarray) -> str:
  """`value 37 (12 pixels), 40 (3 pixels) and 2 more`, most frequent first."""
  order = np.argsort(-counts, kind="stable")[:4]
  text = ", ".join(f"{values[i]} ({counts[i]} pixels)" for i in order)
  more = f" and {len(values) - len(order)} more" if len(values) > len(order) else ""
  return f"{noun} {text}{more}"


def _describe(classes: ClassInfo) -> str:
  values = classes.values
  plain = classes.mask_values is None
  if classes.instance:
    ids = f"1000 to {1000 * len(values) - 1}, 1000 times the class and a number below 1000"
    return f"objects of the {len(values) - 1} kinds have the ids {ids}"
  text = f"0 to {len(values) - 1}" if plain else ", ".join(map(str, values))
  void = "" if classes.ignore_label is None else f" and {classes.ignore_label} for void"
  return f"{len(values)} classes have the values {text}{void}"
