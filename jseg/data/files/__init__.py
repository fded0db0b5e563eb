"""Files of a data set: reading them, naming the one at fault, noticing that one changed."""

import codecs
import contextlib
import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from jseg.types import InputError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_UTF8_MARK = "UTF-8 with a mark"
_UTF8_FIX = "Save it again as UTF-8; jseg check-data --fix does where the encoding is certain"
_CODECS = {_UTF8_MARK: "utf-8-sig"}
# The longer marks first: that of UTF-32-LE begins with that of UTF-16-LE.
_MARKS = (
  (codecs.BOM_UTF8, _UTF8_MARK),
  (codecs.BOM_UTF32_LE, "UTF-32"),
  (codecs.BOM_UTF32_BE, "UTF-32"),
  (codecs.BOM_UTF16_LE, "UTF-16"),
  (codecs.BOM_UTF16_BE, "UTF-16"),
)
_SHORT = reprlib.Repr()  # what is nested may be short to write and endless to read out
_SHORT.maxlevel = 3


class FileError(InputError):
  """One file, what is wrong with it, what to do about it.

  Attributes:
    kind: short name of the kind of problem, for grouping, such as unreadable, missing, encoding,
      depth, size, values, partner, twice, layout, unused.
    file: path of the file.
    problem: what is wrong.
    fix: the remedy.
  """

  def __init__(self, kind: str, file: Path | str, problem: str, fix: str):
    name = str(file).replace("\n", "\\n")  # which would look like another message
    super().__init__(f"{name}: {problem}. {fix}")
    self.kind, self.file, self.problem, self.fix = kind, str(file), problem, fix

  def to_dict(self, severity: str) -> dict[str, str]:
    """Plain values for JSON; `severity` is "error" or "warning"."""
    fields = {"kind": self.kind, "file": self.file, "problem": self.problem, "fix": self.fix}
    return {"severity": severity, **fields}


def attempt(
  function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> tuple[Result | None, list[FileError]]:
  """Calls a function: returns (its result, []), or (None, [the problem])."""
  try:
    return function(*args, **kwargs), []
  except FileError as problem:
    return None, [problem]


def is_file(path: Path) -> bool:
  """Whether there is such a file, whatever characters its name has, and however many."""
  try:
    return path.is_file()
  except (OSError, ValueError):
    return False


def read_bytes(path: Path) -> bytes:
  """Contents of a file.

  Raises:
    FileError: the file cannot be read.
  """
  with _naming(path):
    return path.read_bytes()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
  """Turns what keeps a file from being read into a FileError."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or str(error)
    raise FileError("unreadable", path, reason, "Check the path and its permissions") from error


def read_text(path: Path) -> str:
  """Text of a file in UTF-8, with or without a byte order mark.

  Raises:
    FileError: the file can't be read, or is in another encoding, which is named.
  """
  text, encoding = decode_text(read_bytes(path), path)
  if encoding not in ("", _UTF8_MARK):
    raise FileError("encoding", path, f"is encoded in {encoding}", _UTF8_FIX)
  return text


def decode_text(content: bytes, where: Path) -> tuple[str, str]:
  """Decodes text whose encoding is certain.

  Returns:
    (the text, "" for plain UTF-8 or else the name of its encoding).

  Raises:
    FileError: it can't be said in which encoding it is.
  """
  encoding = _marked_encoding(content)
  try:
    return content.decode(_CODECS.get(encoding, encoding or "utf-8")), encoding
  except UnicodeDecodeError as error:
    raise FileError(
      "encoding",
      where,
      f"is not encoded in {encoding or 'UTF-8'} (byte {content[error.start]:#x} at {error.start}); "
      "perhaps in Windows-1252 or Latin-1",
      _UTF8_FIX,
    ) from None


def _marked_encoding(content: bytes) -> str:
  """Which encoding a text has by its mark, or by the zero bytes around its first character."""
  for mark, name in _MARKS:
    if content.startswith(mark):
      return name
  # JSON and lists of names begin with a character of ASCII.
  if len(content) < 2 or (content[0] == 0) == (content[1] == 0):
    return ""
  return "UTF-16-BE" if content[0] == 0 else "UTF-16-LE"


def parse_json(content: str | bytes, where: Path, fix: str) -> object:
  """Returns the values of a JSON text.

  Args:
    content: the text.
    where: the file that it is of, for messages.
    fix: the remedy where it is none.

  Raises:
    FileError: it isn't JSON.
  """
  try:
    return json.loads(content)
  # JSONDecodeError, UnicodeDecodeError, numbers of thousands of digits, and depth without end.
  except (ValueError, RecursionError) as error:
    raise FileError("unreadable", where, f"is not valid JSON ({error})", fix) from None


def shown(value: object) -> str:
  """A value of a file, for messages: short, and of characters that any file name can have."""
  try:
    text = value if isinstance(value, str) else _SHORT.repr(value)
  except ValueError:  # an integer of thousands of digits
    text = "a huge number"
  text = text.encode("utf-8", "backslashreplace").decode()
  return text if len(text) <= 60 else f"{text[:60]}..."


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
    hashes = pool.map(lambda file: _digest(file[1]), files)
    for (name, _), content in zip(files, hashes, strict=True):
      digest.update(f"\0{name}\0{content}".encode())
  return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
  """A digest of a file of any size, of which little is in memory."""
  with _naming(path), path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
