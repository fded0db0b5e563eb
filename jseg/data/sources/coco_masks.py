"""Masks in COCO's JSON: polygons and run-length codes, in the forms in which tools write them."""

from collections.abc import Mapping, Sequence

import numpy as np

from jseg.data.files import shown
from jseg.data.sources.annotated import Flaw, draw_polygons, read_id, read_numbers

_DIGITS = 12  # of 5 bits, in one number of a run-length code


def read_mask(segmentation: object, size: tuple[int, int]) -> np.ndarray:
  """The mask of an annotation: bool [h w]. Raises Flaw."""
  if not segmentation:
    raise Flaw("no mask", "has a box but no mask")
  if isinstance(segmentation, dict):
    return _decode(segmentation, size)
  if not isinstance(segmentation, list):
    raise Flaw("malformed", f"has {shown(segmentation)} where polygons belong")
  if all(isinstance(part, dict) for part in segmentation):
    mask = np.zeros(size, bool)
    for part in segmentation:  # which may be more than memory has room for at a time
      mask |= _decode(part, size)
    return mask
  if not any(isinstance(part, list) for part in segmentation):
    segmentation = [segmentation]  # one polygon that isn't in a list
  elif len(segmentation) > 2 and all(_is_point(part) for part in segmentation):
    segmentation = [segmentation]  # one polygon, point by point
  elif all(_holds_polygons(part) for part in segmentation):
    segmentation = [polygon for part in segmentation for polygon in part]
  return draw_polygons([_polygon(part) for part in segmentation], size)


def _is_point(value: object) -> bool:
  return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _holds_polygons(value: object) -> bool:
  """Whether a list holds polygons [x0, y0, x1, y1, ...] and is none."""
  return isinstance(value, list) and all(isinstance(v, list) and len(v) > 5 for v in value)


def _polygon(values: object) -> list[float]:
  """[x0, y0, x1, y1, ...] of a polygon, which may be a list of points. Raises Flaw."""
  if isinstance(values, list) and values and all(_is_point(value) for value in values):
    values = [number for point in values for number in point]
  return read_numbers(values)


def _decode(code: Mapping[str, object], size: tuple[int, int]) -> np.ndarray:
  """The mask of a run-length code: bool [h w]. Raises Flaw."""
  counts, given = code.get("counts"), code.get("size", list(size))
  if counts is None:
    raise Flaw("malformed", "has a mask that is neither polygons nor a run-length code")
  if not isinstance(given, list) or [read_id(n) for n in given] != list(size):
    of = " x ".join(shown(n) for n in given[::-1]) if isinstance(given, list) else shown(given)
    what = f"has a mask that isn't a run-length code of {size[1]} x {size[0]} but of {of}"
    raise Flaw("run lengths", what)
  pixels = size[0] * size[1]
  try:
    if not isinstance(counts, list | str | bytes):
      raise ValueError("neither numbers nor text")
    runs = _whole(counts) if isinstance(counts, list) else read_runs(counts)
  except (ValueError, TypeError, IndexError, AttributeError):
    raise Flaw("malformed", "has a run-length code that can't be read") from None
  # Runs are below 2^60, and their sum may be above what 64 bits hold.
  if (
    len(runs) > 2 * pixels + 2 or (runs < 0).any() or (runs > pixels).any() or runs.sum() != pixels
  ):
    total = sum(runs[: 2 * pixels + 2].tolist())
    raise Flaw("run lengths", f"has runs of {total} pixels for an image of {pixels}")
  return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size[::-1]).T


def _whole(counts: Sequence[object]) -> np.ndarray:
  """Whole numbers as int64. Raises ValueError."""
  numbers = [read_id(count) for count in counts]
  if not all(isinstance(number, int) and 0 <= number < 1 << 60 for number in numbers):
    raise ValueError("not whole")
  return np.array(numbers, np.int64)


def read_runs(text: str | bytes) -> np.ndarray:
  """The runs that COCO's text stands for: 5 bits per character, from the fourth run as differences.

  Not by pycocotools, which trusts the text and writes past its end where that is damaged.
  """
  data = text.encode("ascii") if isinstance(text, str) else text
  codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
  if (codes < 0).any() or (codes >= 64).any():
    raise ValueError("another character")
  ends = np.flatnonzero(codes & 32 == 0)
  if len(codes) and (not len(ends) or ends[-1] != len(codes) - 1):
    raise ValueError("cut short")
  starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
  lengths = ends - starts + 1
  if not len(ends) or lengths.max() > _DIGITS:
    raise ValueError("too long a number")
  place = np.arange(len(codes)) - np.repeat(starts, lengths)
  values = np.add.reduceat((codes & 31) << 5 * place, starts)
  runs = values - np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
  runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
  return runs
