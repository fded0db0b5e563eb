"""Files that are written: their places tried before the work, written whole or not at all."""

import contextlib
import errno
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection

from jseg.owner import Owner
from jseg.types import InputError

GO_ON = "mend that, then start the same command again: it goes on from there"
"""Remedy where what was written before is kept."""

_DAY = 86400.0
_REMOTE = re.compile(r"[a-z][a-z0-9+.]+:/+[^/]")  # a drive of Windows is one letter
_TEMPORARY = re.compile(r"\.jseg-(?P<host>.+)-(?P<pid>[0-9]{1,9})-[0-9a-f]{8}\.tmp")


class WriteError(InputError):
  """A file or folder can't be written: the disk is full, it is read-only, something is in its way.

  The message names it, the reason and the remedy.

  Attributes:
    read_only: whether it may be read and not be written, by permission or by the file system.
  """

  def __init__(self, message: str, read_only: bool = False):
    super().__init__(message)
    self.read_only = read_only


def is_remote(place: str | pathlib.PurePath) -> bool:
  """Whether a place is in an object store: "gs://BUCKET/NAME", "s3://BUCKET/NAME" and the like.

  `pathlib` makes one slash of two: such a path is one too.
  """
  return bool(_REMOTE.match(str(place)))


def refuse_remote(place: str | pathlib.PurePath, remedy: str) -> None:
  """Refuses a place in an object store, where only runs and data sets can be (`jseg.remote`).

  Args:
    place: the place.
    remedy: what the user is to do.

  Raises:
    InputError: it is in one.
  """
  if is_remote(place):
    raise InputError(
      f"{place} is in an object store, where only a run's --workdir and data.root can be; {remedy}"
    )


def try_folder(folder: pathlib.Path, remedy: str) -> None:
  """Makes a folder, unless it is there, and writes to it for a try.

  Args:
    folder: the folder.
    remedy: what the user is to do where it fails.

  Raises:
    InputError: it can't be made or written to.
  """
  refuse_remote(folder, "name a folder of this machine")
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(b"jseg")  # a full disk still makes empty files
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


def unwritable(path: pathlib.Path, error: OSError, remedy: str) -> WriteError:
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
  read_only = error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
  return WriteError(f"{path} can't be written ({reason}); {remedy}", read_only)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file in UTF-8; see `write_bytes`."""
  write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes | bytearray) -> None:
  """Writes a file as a whole or not at all, and not if this is what it holds already.

  All files of the library are written here, beside those that are appended to
  (`jseg.json_files`), so that none is ever seen half. Its folder is made if it isn't there.

  Args:
    path: the file.
    content: what it is to hold.

  Raises:
    WriteError: it can't be written; what was there is as it was.
  """
  try:
    if _holds(path, content):
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name())
    try:
      with temporary.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      temporary.replace(path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise
  except OSError as error:
    raise unwritable(path, error, GO_ON) from None


def _holds(path: pathlib.Path, content: bytes | bytearray) -> bool:
  """Whether a file is there and holds this already."""
  try:
    return path.stat().st_size == len(content) and path.read_bytes() == content
  except OSError:
    return False


def temporary_name() -> str:
  """A name of a file or folder of this process, that `sweep` knows when the process has ended."""
  owner = Owner.here()
  return f".jseg-{owner.host}-{owner.pid}-{secrets.token_hex(4)}.tmp"


def sweep(folder: pathlib.Path, *, below: bool = True) -> None:
  """Removes what processes that were killed have left half-written in a folder.

  Args:
    folder: the folder; it need not be there. Of processes on other machines, which may still be at
      it, only files older than a day are removed.
    below: whether its folders are swept, too.
  """
  for path in [*folder.glob(".jseg-*.tmp"), *(folder.glob("*/.jseg-*.tmp") if below else ())]:
    if match := _TEMPORARY.fullmatch(path.name):
      owner = Owner(match["host"], int(match["pid"]), "")
      with contextlib.suppress(OSError):
        if path.is_dir():
          if owner.is_gone():
            shutil.rmtree(path, ignore_errors=True)
        elif owner.is_gone() or time.time() - path.stat().st_mtime > _DAY:
          path.unlink()
