"""Mask files: raw values or colors in, train ids out.

A mask holds numbers, so what counts is what is stored and not how it is shown: one bit, two or four
are not stretched to eight, and an indexed file gives its indices, unless `ClassInfo.by_color` asks
for their colors.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from jseg.arithmetic import count_bytes, strips
from jseg.data.files import FileError
from jseg.data.files.classes import ClassInfo, Color
from jseg.data.files.opening import Opened, image_strips, open_checked, palette
from jseg.types import IGNORE

_BINARY_FIX = (
  'If 255 stands for the second class, say so in classes.json: "mask_values": [0, 255], '
  '"ignore_label": null'
)
# Programs that store numbers and mean them, also where they say that 0 is to be shown as white.
_STORES_NUMBERS = ("tifffile", "imagej")


@dataclasses.dataclass(frozen=True, eq=False)
class RawMask:
  """What a mask file holds.

  Attributes:
    values: uint8 or int32 [h w] of numbers, indices of an indexed file among them, or uint8
      [h w 3] of colors.
    renumbered: the indices mean nothing beside their colors: programs renumber those of a GIF.
    depth: bits of a number as stored.
    palette: uint8 [256 3], colors of an indexed file; else None.
    shown: uint8 or int32 [h w], the numbers as they are shown, where 0 is white (TIFF's
      MinIsWhite, PBM); else None.
    turned: an EXIF orientation was applied.
    transparent: it has an alpha channel that isn't the same everywhere; it is dropped.
  """

  values: np.ndarray
  depth: int = 8
  palette: np.ndarray | None = None
  shown: np.ndarray | None = None
  turned: bool = False
  transparent: bool = False
  renumbered: bool = False

  @property
  def colored(self) -> bool:
    """Whether it is a mask of colors, which it may hold as indices."""
    return self.values.ndim == 3 or self.renumbered

  def colors(self, rows: slice = slice(None)) -> np.ndarray:
    """Colors of some rows of a mask of colors: uint8 [h w 3]."""
    return self.values[rows] if self.palette is None else self.palette[self.values[rows]]


@dataclasses.dataclass(frozen=True, eq=False)
class Label:
  """A mask translated to train ids.

  Attributes:
    ids: uint8 [h w], IGNORE where void.
    values: uint8 or int32 [h w], the numbers that were translated; of instance masks, the
      objects' ids; of a mask of colors, its train ids.
    traits: what is unusual about the file, see `jseg.data.survey`.
    colors: color of each index that occurs in an indexed file which is read by its indices.
  """

  ids: np.ndarray
  values: np.ndarray
  traits: frozenset[str] = frozenset()
  colors: Mapping[int, Color] = dataclasses.field(default_factory=dict)


def read_mask(data: bytes, where: Path | str) -> RawMask:
  """Decodes a mask file to its raw values.

  Args:
    data: the file's bytes.
    where: name of the file, for messages.

  Raises:
    FileError: the file is damaged or of a kind that cannot hold class values.
  """
  opened = open_checked(data, where)
  image = opened.image
  if _is_lossy(image, data):
    raise FileError(
      "values",
      where,
      f"a {image.format} cannot be a mask: its compression changes the values at every border",
      "Export the masks again as PNG",
    )
  deep = opened.depth > 8 and image.mode not in ("I", "F") and not image.mode.startswith("I;")
  if deep or image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "La", "RGBa"):
    kind = f"{opened.depth} bits per channel" if deep else f"mode {image.mode}"
    raise FileError("values", where, f"{kind} cannot hold class values", "Save it as 8-bit PNG")
  if image.format == "GIF" and image.mode == "P":
    return _of_gif(opened)
  alpha = image.getchannel("A").getextrema() if image.mode in ("RGBA", "LA", "PA") else (0, 0)
  turned, transparent = opened.orientation > 1, alpha[0] != alpha[1]
  colors, count = palette(image) if image.mode in ("P", "PA") else (None, 0)
  array = _upright(opened)
  image.close()  # or it would take as much again
  if array.ndim == 3:
    return RawMask(array, turned=turned, transparent=transparent)
  values, shown = _numbers(array, opened, where)
  depth = opened.depth if opened.maximum is None else opened.maximum.bit_length()
  depth = 1 if count == 2 else depth
  return RawMask(values, depth, colors, shown, turned, transparent)


def _of_gif(opened: Opened) -> RawMask:
  """An indexed GIF: programs renumber its indices by the colors that occur, gray ones too."""
  colors, _ = palette(opened.image)
  used = colors[np.flatnonzero(opened.image.histogram())]
  turned = opened.orientation > 1
  if (used != used[:, :1]).any():
    # Its colors would be three times as large.
    return RawMask(_upright(opened), 8, colors, turned=turned, renumbered=True)
  grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
  return RawMask(_upright(opened, colors[:, 0]), 8, grays, turned=turned)


def _upright(opened: Opened, table: np.ndarray | None = None) -> np.ndarray:
  """The array of an image without its alpha, or what a table has for its numbers."""
  found = None
  for part, strip in image_strips(opened.image):
    rows = np.asarray(strip)
    if rows.ndim == 3:
      rows = rows[..., :3] if rows.shape[2] > 2 else rows[..., 0]
    rows = rows if table is None else table[rows]
    if found is None:
      found = np.empty((*opened.size, *rows.shape[2:]), rows.dtype)
    opened.stored(found)[part] = rows
  assert found is not None
  return found


def _numbers(
  array: np.ndarray, opened: Opened, where: Path | str
) -> tuple[np.ndarray, np.ndarray | None]:
  """The numbers of a gray image as stored and, where that differs, as shown."""
  mode, largest = opened.image.mode, 255
  if mode == "F":
    array = whole_numbers(array, where)
    np.clip(array, -1, 2**30, out=array)
  elif opened.maximum is not None:  # Pillow stretches PGM to 8 or 16 bits
    white = 255 if mode == "L" else 65535
    stored = np.rint(np.arange(white + 1) * (opened.maximum / white))
    array = _look_up(stored.astype(np.uint8 if opened.maximum < 256 else np.int32), array)
  elif mode == "1":
    largest = 1
  elif mode == "L" and opened.depth < 8 and opened.image.format in ("PNG", "TIFF"):
    largest = 2**opened.depth - 1
    array //= 255 // largest
  values = array.astype(np.uint8 if array.dtype.itemsize == 1 else np.int32, copy=False)
  if opened.image.format == "PPM" and mode == "1":
    return 1 - values, values
  if not opened.white_is_zero:
    return values, None
  if mode not in ("1", "L"):  # what Pillow leaves as it is
    return values, None
  if any(name in opened.writer for name in _STORES_NUMBERS):
    return largest - values, None
  return largest - values, values


def whole_numbers(array: np.ndarray, where: Path | str, step: float = 0.0) -> np.ndarray:
  """Rounds the numbers of a label file that miss whole numbers by rounding alone.

  Args:
    array: float, any shape; integers are whole already.
    where: name of the file, for messages.
    step: distance of the numbers that the file can hold, where its header scales integers.

  Returns:
    float, whole numbers; integers as they are.

  Raises:
    FileError: a number lies further from a whole one than half a step and a ten-thousandth.
  """
  if array.dtype.kind in "iu":
    return array
  # A step as wide as the classes' distance explains nothing.
  of_step = 0.505 * step if step < 0.1 else 0
  whole, broken, example = np.empty_like(array), 0, 0.0
  for part in strips(array.shape):
    found, whole[part] = array[part], np.rint(array[part])
    slack = of_step + 1e-4 * np.clip(np.abs(found), 1, 100)
    with np.errstate(invalid="ignore"):
      off = ~(np.abs(found - whole[part]) <= slack)
    if off.any():
      broken, example = broken + int(off.sum()), example if broken else found[off][0]
  if broken:
    noun = "voxels" if array.ndim == 3 else "pixels"
    raise FileError(
      "values",
      where,
      f"value {example:g} is no whole number ({broken} {noun} are not)",
      "A mask holds class values: resample masks by nearest neighbor",
    )
  return whole


def _is_lossy(image: Image.Image, data: bytes) -> bool:
  """Whether a file's compression changes values."""
  match image.format:
    case "JPEG" | "MPO" | "AVIF":
      return True
    case "WEBP":
      place = 12  # chunks follow: a name, a length, and an even number of bytes
      while place + 8 <= len(data):
        if data[place : place + 3] == b"VP8" and data[place : place + 4] != b"VP8X":
          return data[place : place + 4] == b"VP8 "
        place += 8 + (int.from_bytes(data[place + 4 : place + 8], "little") + 1) // 2 * 2
    case "JPEG2000":
      place = data.find(b"\xff\x52")  # COD: its last byte names the wavelet, 0 is irreversible
      return place >= 0 and data[place + 13] == 0
    case "TIFF":
      return image.info.get("compression") in ("jpeg", "tiff_jpeg")
  return False


def make_label(raw: RawMask, classes: ClassInfo, table: np.ndarray, where: Path | str) -> Label:
  """Translates raw mask values to train ids.

  Args:
    raw: what `read_mask` returned.
    classes: the classes.
    table: int16 [65536], see `ClassInfo.table`.
    where: name of the file, for messages.

  Raises:
    FileError: values or colors occur that no class has, with their pixel counts.
  """
  values, traits = raw.values, {"transparent"} if raw.transparent else set()
  if raw.colored and classes.instance:
    raise FileError(
      "values",
      where,
      "a color image cannot be a mask of instance ids",
      "Save the ids in one channel of 8 or 16 bits, as PNG",
    )
  if raw.colored:
    ids = _label_from_colors(raw, classes, where)
    return Label(ids, ids, frozenset(traits))
  if raw.shown is not None:
    traits.add("white_is_zero")
    values = raw.shown if _known(raw.shown, table) or not _known(values, table) else values
  if raw.palette is not None and classes.by_color:
    numbers, reordered = _ids_of_indices(raw, classes, where)
    traits |= {"reordered"} if reordered else set()
    return Label(_look_up(numbers, values), values, frozenset(traits))
  values = _stretch_bit(values, raw, classes)
  if not _known(values, table):
    raise _unknown_values(values, classes, table, where)
  colors = {} if raw.palette is None else _colors_used(raw)
  return Label(_look_up(table.astype(np.uint8), values), values, frozenset(traits), colors)


def _look_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
  """`table[values]`, strip by strip: NumPy makes numbers of 8 bytes of all that it looks up."""
  found = np.empty((*values.shape, *table.shape[1:]), table.dtype)
  for part in strips(values.shape):
    found[part] = table[values[part]]
  return found


def _known(values: np.ndarray, table: np.ndarray) -> bool:
  """Whether all numbers are those of classes or of void."""
  low, high = values.min(), values.max()
  known = table >= 0
  return low >= 0 and high < table.size and bool(_look_up(known, values).all())


def _stretch_bit(values: np.ndarray, raw: RawMask, classes: ClassInfo) -> np.ndarray:
  """Makes the bit of a one-bit mask 0 and 255, or what else the two classes have, if 1 is none."""
  meant = classes.instance or 1 in (*classes.values, classes.ignore_label)
  if raw.depth != 1 or meant or raw.values.max(initial=0) > 1:
    return values
  if 255 not in classes.values and len(classes.values) != 2:
    return values
  numbers = [min(classes.values), 255 if 255 in classes.values else max(classes.values)]
  if raw.palette is not None and raw.palette[1].sum(dtype=int) < raw.palette[0].sum(dtype=int):
    numbers.reverse()
  return _look_up(np.array(numbers, np.uint8 if max(numbers) < 256 else np.int32), values)


def _unknown_values(
  raw: np.ndarray, classes: ClassInfo, table: np.ndarray, where: Path | str
) -> FileError:
  found, counts = _counts(raw)
  inside = (found >= 0) & (found < table.size)
  unknown = ~inside | (table[np.where(inside, found, 0)] < 0)
  fix = "Add the missing class to classes.json, or give such pixels the ignore value"
  if classes.ignore_label is not None:
    fix += f" {classes.ignore_label}"
  if set(found.tolist()) <= {0, 255} and len(classes.names) == 2:
    fix = _BINARY_FIX
  return FileError(
    "values",
    where,
    f"{_listing('value', found[unknown], counts[unknown])} of no class; {_describe(classes)}",
    fix,
  )


def _counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Numbers that occur, ascending, and how often each does."""
  if values.dtype != np.uint8:
    return np.unique(values, return_counts=True)
  counts = count_bytes(values)
  found = np.flatnonzero(counts)
  return found, counts[found]


def _colors_used(raw: RawMask) -> dict[int, Color]:
  """Color of each index that occurs."""
  assert raw.palette is not None
  return {i: tuple(raw.palette[i].tolist()) for i in _counts(raw.values)[0].tolist()}


def _ids_of_indices(raw: RawMask, classes: ClassInfo, where: Path | str) -> tuple[np.ndarray, bool]:
  """Train id of each index by its color, uint8 [256], and whether any differs from its index."""
  known = {tuple(color): i for i, color in enumerate(classes.palette.tolist())}
  if classes.ignore_color is not None:
    known[classes.ignore_color] = IGNORE
  ids, unknown = np.zeros(256, np.uint8), []
  used = _colors_used(raw)
  for index, color in used.items():
    if color in known:
      ids[index] = known[color]
    elif index == classes.ignore_label:
      ids[index] = IGNORE
    else:
      unknown.append((index, color))
  if unknown:
    listed = ", ".join(f"{color} (index {index})" for index, color in unknown[:4])
    more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
    raise FileError(
      "values",
      where,
      f"an indexed mask with the color {listed}{more} that the palette lacks",
      "Add the color to classes.json, or leave palette out there if indices are class numbers",
    )
  table = classes.table()
  return ids, any(ids[index] != table[index] for index in used)


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


def _label_from_colors(raw: RawMask, classes: ClassInfo, where: Path | str) -> np.ndarray:
  colors = list(enumerate(classes.palette.tolist()))
  if classes.ignore_color is not None:
    colors.append((IGNORE, classes.ignore_color))
  ids = np.empty(raw.values.shape[:2], np.uint8)
  unknown: np.ndarray | None = None
  for part in strips(ids.shape):
    shown = raw.colors(part)
    code = shown[..., 0].astype(np.int32)
    for channel in (1, 2):
      code *= 256
      code += shown[..., channel]
    found = np.full(code.shape, -1, np.int16)
    for i, (red, green, blue) in colors:
      found[code == (red * 65536 + green * 256 + blue)] = i
    if (found < 0).any():
      unknown = np.zeros(2**24, np.int32) if unknown is None else unknown
      colors_here, counts = np.unique(code[found < 0], return_counts=True)
      unknown[colors_here] += counts
    ids[part] = found.astype(np.uint8)
  if unknown is not None:
    those = np.flatnonzero(unknown)
    values = np.stack([those >> 16, those >> 8 & 255, those & 255], 1)
    gray = raw.palette is None and all(
      (raw.values[part] == raw.values[part, :, :1]).all() for part in strips(ids.shape)
    )
    raise FileError(
      "values",
      where,
      f"a color mask with {_listing('color', values, unknown[those])} that the palette lacks",
      "Its three channels are equal: save one of them as the mask"
      if gray
      else "Add the class and its color to classes.json, or name the color of void ignore_color",
    )
  return ids


def _listing(noun: str, values: np.ndarray, counts: np.ndarray) -> str:
  """`value 37 (12 pixels), 40 (3 pixels) and 2 more`, most frequent first."""
  order = np.argsort(-counts, kind="stable")[:4]
  first = zip(values[order].tolist(), counts[order].tolist(), strict=True)
  text = ", ".join(
    f"{tuple(value) if isinstance(value, list) else value} ({count} pixels)"
    for value, count in first
  )
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
