"""PNG files written strip by strip: a picture of any size needs no memory of its own."""

import itertools
import pathlib
import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

_GRAY, _COLORS, _INDEXED = 0, 2, 3  # PNG's color types
_LEFT, _ABOVE = 1, 2  # PNG's filters: what a row is written as the difference from
_PIECE = 2**20  # bytes of a chunk at the most, but for what a strip adds at once


def save_png(
  path: pathlib.Path,
  strips: Iterable[np.ndarray],
  size: tuple[int, int],
  palette: np.ndarray | None = None,
) -> None:
  """Writes a picture as a PNG.

  Args:
    path: file to write.
    strips: rows from the top in one array or more: uint8 or uint16 [rows w], or uint8 [rows w 3].
    size: height and width.
    palette: uint8 [n 3], colors of a picture of indices; None: values are gray or RGB.

  Raises:
    ValueError: the strips have more or fewer rows than the size says.
  """
  following = iter(strips)
  first = next(following)
  kind = _COLORS if first.ndim == 3 else _GRAY if palette is None else _INDEXED
  # Runs alone, at the lowest level, take a third of zlib's time for masks and what is drawn over
  # photos, which become no larger.
  packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
  packed, rows = bytearray(), 0
  above = np.zeros((1, size[1] * first.dtype.itemsize, *first.shape[2:]), np.uint8)
  with path.open("wb") as file:
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", *size[::-1], 8 * first.dtype.itemsize, kind, 0, 0, 0)
    _write_chunk(file, b"IHDR", header)
    if palette is not None:
      _write_chunk(file, b"PLTE", palette.astype(np.uint8).tobytes())
    for strip in itertools.chain([first], following):
      if strip.shape[1:] != first.shape[1:] or strip.shape[1] != size[1]:
        raise ValueError(f"rows of {strip.shape[1:]} in a picture of {size}")
      values = strip if strip.dtype == np.uint8 else strip.astype(">u2").view(np.uint8)
      packed += packer.compress(_filtered(values, above, kind).data)
      above, rows = values[-1:], rows + len(strip)
      if len(packed) >= _PIECE:
        _write_chunk(file, b"IDAT", packed)
        packed.clear()
    if rows != size[0]:
      raise ValueError(f"{rows} rows in a picture of {size}")
    _write_chunk(file, b"IDAT", packed + packer.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, name: bytes, content: bytes | bytearray) -> None:
  file.write(struct.pack(">I", len(content)) + name)
  file.write(content)
  file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))


def _filtered(strip: np.ndarray, above: np.ndarray, kind: int) -> np.ndarray:
  """Rows as PNG has them: the filter of each, then its bytes, uint8 [rows 1 + n].

  Masks differ little from the row above. Of colors, each row takes the filter that leaves the
  smaller differences, as libpng does.

  Args:
    strip: uint8 [rows w], [rows w 3], or as many bytes in each row.
    above: the row above, likewise.
    kind: PNG's color type.
  """
  rows = len(strip)
  result = np.empty((rows, 1 + strip[0].size), np.uint8)
  up = strip - np.concatenate([above, strip[:-1]])
  result[:, 0], result[:, 1:] = _ABOVE, up.reshape(rows, -1)
  if kind == _COLORS:
    left = strip.copy()
    left[:, 1:] -= strip[:, :-1]
    costs = [np.abs(each.view(np.int8)).reshape(rows, -1).sum(1, np.int64) for each in (left, up)]
    smaller = costs[0] < costs[1]
    result[smaller, 0], result[smaller, 1:] = _LEFT, left[smaller].reshape(-1, result.shape[1] - 1)
  return result
