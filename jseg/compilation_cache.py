"""JAX's folder of compiled programs: entries that a killed process has left half."""

import contextlib
import os
import pathlib
import time
import zlib

_CHECKED = ".jseg-checked"
_WRITING_SECONDS = 60.0  # an entry is written within; a younger one may be growing
_ZSTANDARD = b"\x28\xb5\x2f\xfd"


def sweep(folder: pathlib.Path) -> None:
  """Removes broken entries, which JAX would warn of at every start and never replace.

  Every entry is looked at once: those that are older than the last sweep were whole then.

  Args:
    folder: the folder; what can't be looked at or removed stays.
  """
  stamp = folder / _CHECKED
  with contextlib.suppress(OSError):
    checked = stamp.stat().st_mtime if stamp.exists() else 0.0
    until = time.time() - _WRITING_SECONDS
    for path in folder.glob("*-cache"):
      with contextlib.suppress(OSError):
        if checked <= path.stat().st_mtime <= until and not _is_whole(path.read_bytes()):
          path.unlink()
    stamp.touch()
    os.utime(stamp, (until, until))


def _is_whole(content: bytes) -> bool:
  """Whether a compressed file has its end."""
  if content.startswith(_ZSTANDARD):
    try:
      import zstandard  # what JAX takes if it is there
    except ImportError:
      return True
    try:
      zstandard.ZstdDecompressor().decompress(content)
    except zstandard.ZstdError:
      return False
    return True
  reader = zlib.decompressobj()
  try:
    reader.decompress(content)
  except zlib.error:
    return False
  return reader.eof
