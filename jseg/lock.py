"""One process at a time writes a folder: a lock that the death of its holder releases."""

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
import time
from collections.abc import Iterator

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None  # type: ignore[assignment]

from jseg.console import ERRORS
from jseg.owner import Owner
from jseg.types import InputError

_LONG_AGO = 600.0  # seconds that no two clocks differ by


@contextlib.contextmanager
def locked(
  path: pathlib.Path,
  what: str,
  remedy: str,
  *,
  wait: bool = False,
  beat: float = 10.0,
  silent: float = 35.0,
) -> Iterator[None]:
  """Holds a lock, whose file says by whom it is held; it is removed at the end.

  The system releases the lock when the process ends, however it ends. Where it can't tell, because
  the holder is on another machine or the file system has no locks, the holder's signs of life
  decide: it touches the file every few seconds.

  Args:
    path: the file; its folder is made.
    what: what is locked, for the message.
    remedy: what the user is to do meanwhile.
    wait: waits until it is released, instead of refusing.
    beat: seconds between two signs of life.
    silent: seconds without a sign of life after which a holder on another machine counts as gone;
      several times the `beat` of whoever may hold it.

  Raises:
    InputError: another process holds it.
    OSError: it can't be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  file, holder = _acquire(path, silent)
  if wait and holder is not None:
    ERRORS.print(f"{what} is in use by {holder}: waiting for it", soft_wrap=True)
  while wait and holder is not None:
    time.sleep(0.5)
    file, holder = _acquire(path, silent)
  if holder is not None:
    raise InputError(
      f"{what} is in use by {holder}; {remedy}. If that process is gone for certain, remove {path}"
    )
  ended = threading.Event()
  signs = threading.Thread(target=_beat, args=(path, ended, beat), daemon=True)
  signs.start()
  try:
    yield
  finally:
    ended.set()
    signs.join()
    # Removed while it is held: whoever has opened it meanwhile sees that it is another file.
    with contextlib.suppress(OSError):
      path.unlink()
    os.close(file)


def _acquire(path: pathlib.Path, silent: float) -> tuple[int, Owner | None]:
  """Returns (the open file, None), or (-1, the process that holds it)."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    taken = _flock(file)
    if taken is None or taken:
      if not _is_at(file, path):  # its holder has just removed it
        os.close(file)
        continue
      holder = _read(file)
      if holder is None or _may_replace(holder, path, silent, sure=taken is not None):
        text = json.dumps(dataclasses.asdict(Owner.here())).encode()
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, text)
        return file, None
    else:
      holder = _read(file) or Owner("this machine or another", 0, "now")
    os.close(file)
    return -1, holder


def _flock(file: int) -> bool | None:
  """Whether the lock could be taken, or None where the file system has no locks."""
  if fcntl is None:
    return None
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
  except BlockingIOError:
    return False
  except OSError:
    return None


def _is_at(file: int, path: pathlib.Path) -> bool:
  """Whether an open file is the one at a path."""
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _read(file: int) -> Owner | None:
  """The holder that a file names, or None where it names none."""
  try:
    os.lseek(file, 0, os.SEEK_SET)
    values = json.loads(os.read(file, 4096))
    return Owner(str(values["host"]), int(values["pid"]), str(values["since"]))
  except (ValueError, KeyError, TypeError):
    return None


def _may_replace(holder: Owner, path: pathlib.Path, silent: float, *, sure: bool) -> bool:
  """Whether a holder that has left its name in the file is gone.

  Args:
    holder: the process.
    path: the file.
    silent: seconds without a sign of life after which it counts as gone.
    sure: whether the lock is ours, so that no process of this machine holds it.
  """
  if holder.is_near and (sure or holder.is_gone()):
    return True
  touched = path.stat().st_mtime
  if time.time() - touched < _LONG_AGO:
    ERRORS.print(f"{path} was left by {holder}; waiting for a sign of life", soft_wrap=True)
    until = time.monotonic() + silent
    while time.monotonic() < until:
      time.sleep(min(1.0, silent / 10))
      try:
        if path.stat().st_mtime != touched:
          return False
      except FileNotFoundError:  # it has just ended
        return False
  ERRORS.print(f"! {holder} gives no sign of life; {path} is taken over", soft_wrap=True)
  return True


def _beat(path: pathlib.Path, ended: threading.Event, seconds: float) -> None:
  while not ended.wait(seconds):
    with contextlib.suppress(OSError):
      os.utime(path)
