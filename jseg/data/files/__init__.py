"""Files of a data set: reading them, naming the one at fault, noticing that one changed."""

import codecs
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from jseg.types import InputError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# The longer marks first: that of UTF-32-LE begins with that of UTF-16-LE.
_MARKS = (
  (codecs.BOM_UTF32_LE, "UTF-32"),
  (codecs.BOM_UTF32_BE, "UTF-32"),
  (codecs.BOM_UTF16_LE, "UTF-16"),
  (codecs.BOM_UTF16_BE, "UTF-16"),
)


class FileError(InputError):
  """One file, what is wrong with it, what to do about it.

  Attributes:
    kind: short name of the kind of problem, for grouping: unreadable, missing, depth, size, values,
      partner, layout, unused.
    file: path of the file.
    problem: what is wrong.
    fix: the remedy.
  """

  def __init__(self, kind: str, file: Path | str, problem: str, fix: str):
    super().__init__(f"{file}: {problem}. {fix}")
    self.kind, self.file, self.problem, self.fix = kind, str(file), problem, fix


def attempt(
  function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> tuple[Result | None, list[FileError]]:
  """Calls a function: returns (its result, []), or (None, [the problem])."""
  try:
    return function(*args, **kwargs), []
  except FileError as problem:
    return None, [problem]


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


def read_text(path: Path) -> str:
  """Text of a file in UTF-8, with or without a byte order mark.

  Raises:
    FileError: the file can't be read, or is in another encoding, which is named.
  """
  content = read_bytes(path)
  try:
    if encoding := marked_encoding(content):
      raise FileError("encoding", path, f"is encoded in {encoding}", "Save it again as UTF-8")
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise FileError(
      "encoding",
      path,
      f"is not encoded in UTF-8: byte {content[error.start]:#x} at {error.start} is none of its; "
      "perhaps in Windows-1252 or Latin-1",
      "Save it again as UTF-8",
    ) from None


def marked_encoding(content: bytes) -> str | None:
  """Which other encoding than UTF-8 a text is plainly in, by its mark or its zero bytes, if any."""
  for mark, name in _MARKS:
    if content.startswith(mark):
      return name
  # JSON and lists of names begin with a character of ASCII.
  if len(content) < 2 or (content[0] == 0) == (content[1] == 0):
    return None
  return "UTF-16-BE" if content[0] == 0 else "UTF-16-LE"


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
