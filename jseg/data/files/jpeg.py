"""JPEG files that were cut, of which decoders fill the rest with gray and don't tell.

libjpeg, which Pillow and OpenCV use, only warns where a scan ends before its last block, and
neither passes that on if a marker follows. So other bits are put in the marker's place: an image
that is whole needs none of them.
"""

import dataclasses
import re
from collections.abc import Iterator

# As many as libjpeg looks ahead at most. Ones begin no Huffman code; for each symbol that is
# missing it takes 17 of them, so that they are soon used up.
_ONES = b"\xff\0" * 7
_OTHERS = bytes.fromhex("3b9e62d1a7054cf81b8d27e05a73964c0e")
_START, _END = b"\xff\xd8", b"\xff\xd9"
# Within a scan, a byte of 255 is followed by 0, or by one of 208 to 215 between its parts.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_SEQUENTIAL, _PROGRESSIVE, _SCAN = (0xC0, 0xC1), 0xC2, 0xDA  # those of Huffman codes
_MOST_SCANS = 100  # encoders make up to 20, and each takes a pass over the image


@dataclasses.dataclass(frozen=True)
class Scans:
  """What a JPEG's markers say of its scans.

  Attributes:
    end: bytes of the file up to the end of its last scan.
    endings: what to put behind them, so that the files show the same image if that scan is whole;
      if it isn't, the only one ends too early, or two show different images.
    bytes_each: memory in which a decoder keeps a pixel's coefficients until it has all scans; 0 if
      one scan has all.
    fault: what is wrong with them, or "".
  """

  end: int
  endings: tuple[bytes, ...]
  bytes_each: float = 0.0
  fault: str = ""

  def ended(self, data: bytes, ending: bytes) -> bytes:
    """The scans of a file with another end behind them."""
    return b"".join((memoryview(data)[: self.end], ending))


def find_scans(data: bytes) -> Scans | None:
  """Finds the scans of a JPEG; None if it isn't one of Huffman codes, or ends within its last.

  What is missing within the last two blocks of 8 x 8 pixels of its only scan isn't found.

  Args:
    data: the file's bytes.
  """
  sizes: dict[int, int] = {}  # samples of each component for those of the coarsest
  missing: dict[int, set[int]] = {}  # coefficients of each, of which bits are still to come
  scans, progressive, at_once = 0, False, False
  for kind, start, content in _segments(data):
    if at_once or (scans and kind == _END[1]):
      return _judge(start, scans, at_once, sizes, missing)
    if kind in (*_SEQUENTIAL, _PROGRESSIVE):
      progressive, parts = kind == _PROGRESSIVE, content[6:]
      sizes = {
        name: (size >> 4) * (size & 15) for name, size in zip(parts[::3], parts[1::3], strict=False)
      }
      missing = {name: set(range(64)) for name in sizes}
    elif kind == _SCAN and sizes and len(content) >= 6:
      names, (first, last, bits) = content[1:-3:2], content[-3:]
      scans += 1
      at_once = not progressive and len(names) == len(sizes)
      for name in names:
        if not progressive:
          missing.get(name, set()).clear()
        elif bits & 15 == 0:
          missing.get(name, set()).difference_update(range(first, last + 1))
  return None


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
  """The markers of a JPEG: (kind, where it begins, what it holds)."""
  place = len(_START) if data.startswith(_START) else len(data)
  while found := _MARKER.search(data, place):
    start = found.end()
    place = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
    yield found[1][0], found.start(), data[start + 2 : place]


def _judge(
  end: int, count: int, at_once: bool, sizes: dict[int, int], missing: dict[int, set[int]]
) -> Scans:
  if at_once:
    return Scans(end, (_ONES,))
  fault = ""
  if any(missing.values()):
    fault = "the file was cut, or ends too early: scans of the image are missing"
  elif count > _MOST_SCANS:
    fault = f"the image comes in {count} scans, of {_MOST_SCANS} at most"
  bytes_each = 2 * sum(sizes.values()) / max(*sizes.values(), 1)
  return Scans(end, (_ONES + _END, _OTHERS + _END), bytes_each, fault)
