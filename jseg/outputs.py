"""Files that are written: their places tried before the work, written whole or not at all."""

import os
import pathlib
import tempfile
from collections.abc import Collection

from jseg.types import InputError


def try_folder(folder: pathlib.Path, remedy: str) -> None:
  """Makes a folder, unless it is there, and writes to it for a try.

  Args:
    folder: the folder.
    remedy: what the user is to do where it fails.

  Raises:
    InputError: it can't be made or written to.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise unwritable(folder, error, remedy) from None


def try_file(path: pathlib.Path, remedy: str, suffixes: Collection[str] = ()) -> None:
  """Tries whether a file can be written; one that is there stays as it is.

  Args:
    path: the file.
    remedy: what the user is to do where it fails.
    suffixes: what its name may end in, in lower case; empty: anything.

  Raises:
    InputError: it can't be written, or has none of the suffixes.
  """
  if suffixes and path.suffix.lower() not in suffixes:
    raise InputError(
      f"{path} must end in {' or '.join(suffixes)}, which says what kind of file it is; {remedy}"
    )
  if path.is_dir():
    raise InputError(f"{path} is a folder and can't be written as a file; {remedy}")
  try_folder(path.parent, remedy)
  try:
    if path.exists():
      with path.open("ab"):
        pass
  except OSError as error:
    raise unwritable(path, error, remedy) from None


def unwritable(path: pathlib.Path, error: OSError, remedy: str) -> InputError:
  """The error of a place that can't be written to.

  Args:
    path: the place.
    error: why.
    remedy: what the user is to do.
  """
  reason = error.strerror or str(error)
  for place in (path, *path.parents):
    if os.path.isfile(place) and (place != path or isinstance(error, FileExistsError)):
      reason = f"{'it' if place == path else place} is a file and no folder"
      break
  return InputError(f"{path} can't be written ({reason}); {remedy}")


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file as a whole or not at all. Raises OSError."""
  temporary = path.with_name(f"{path.name}.tmp")
  temporary.write_text(text, encoding="utf-8")
  temporary.replace(path)
