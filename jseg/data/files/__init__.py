"""Files of a data set: reading them, naming the one at fault, noticing that one changed."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jseg.types import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
NIFTI_SUFFIXES = (".nii", ".nii.gz")


class FileError(InputError):
  """One file, what is wrong with it, what to do about it.

  Attributes:
    kind: short name of the kind of problem, for grouping: unreadable, depth, size, values,
      partner, layout.
    file: path of the file.
    problem: what is wrong.
    fix: the remedy.
  """

  def __init__(self, kind: str, file: Path | str, problem: str, fix: str):
    super().__init__(f"{file}: {problem}. {fix}")
    self.kind, self.file, self.problem, self.fix = kind, str(file), problem, fix


def read_bytes(path: Path) -> bytes:
  """Contents of a file.

  Raises:
    FileError: the file cannot be read.
  """
  try:
    return path.read_bytes()
  except OSError as error:
    reason = error.strerror or str(error)
    raise FileError("unreadable", path, reason, "Check the path and its permissions") from error


def fingerprint(files: Iterable[tuple[str, Path]], extra: str) -> str:
  """Computes a digest of files by name and content, so that any change is noticed.

  Contents are read rather than sizes and times: a mask that is repainted can keep its size, an
  archive that is unpacked again resets its times, and a folder that was copied need not be
  prepared again. It costs about a second per gigabyte.

  Args:
    files: (name, path) of each file; their order does not matter.
    extra: text of whatever else decides what is prepared.

  Returns:
    16 hexadecimal digits.
  """
  files = sorted(files)
  digest = hashlib.sha256(extra.encode())
  with ThreadPoolExecutor() as pool:
    hashes = pool.map(lambda file: hashlib.sha256(read_bytes(file[1])).hexdigest(), files)
    for (name, _), content in zip(files, hashes, strict=True):
      digest.update(f"\0{name}\0{content}".encode())
  return digest.hexdigest()[:16]
