"""Runs and data on object stores (`gs://`, `s3://`): worked on in a local copy, kept in the store.

A store has no rename, no append and no lock, and what lists as a folder is a set of names. So
nothing of a run is written there directly: a training works in a folder of this machine, and what
is finished there is copied, object by object, in an order that leaves a usable run whenever it
ends. An object is replaced as a whole. Of a checkpoint the mark that it is complete comes last, and
goes first when it is removed; what has no mark is not read. One object, made only where none is, is
the lock.
"""

import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec

from jseg.console import CONSOLE, ERRORS
from jseg.download import cache
from jseg.outputs import is_remote, sweep, temporary_name, unwritable, write_bytes
from jseg.owner import Owner
from jseg.types import InputError

SECONDS = 20.0
"""Between two copies of what is new in a run, and two signs of life of its lock."""

_SILENT = 3.5  # times that, after which whoever holds a lock counts as gone
_MARKS = "checkpoints/complete/"  # of a run in a store, the marks of its checkpoints
_STEP = re.compile(r"checkpoints/(\d+)/")
_LOCAL = re.compile(r"(^|/)(lock|\.jseg-[^/]*\.tmp|[^/]*\.orbax-checkpoint-tmp[^/]*)(/|$)")


@contextlib.contextmanager
def working_copy(place: str | pathlib.Path) -> Iterator[str | pathlib.Path]:
  """Gives a folder to train a run in; what is new in it is copied to its store all the time.

  Args:
    place: a run directory, which no other process may train in meanwhile. One of this machine is
      given as it is.

  Raises:
    InputError: another process holds it, or it can't be read or written; at the end, if the lock
      was lost or something couldn't be copied.
  """
  if not is_remote(place):
    yield place
    return
  store = Store.open(place)
  with contextlib.ExitStack() as stack:
    lock = stack.enter_context(_locked(store))
    root = _temporary_folder()
    stack.callback(shutil.rmtree, root, ignore_errors=True)
    folder = root / store.root.rpartition("/")[2]
    copy = _Copy(store, folder, lock)
    copy.pull()
    CONSOLE.print(f"{store.place} is worked on in {folder}", soft_wrap=True, highlight=False)
    try:
      with _copying(copy):
        yield folder
    finally:
      # Also after an error: what is finished is finished.
      copy.push()


def _temporary_folder() -> pathlib.Path:
  """Makes a folder for this process, and removes those of processes that were killed."""
  place = pathlib.Path(tempfile.gettempdir())
  sweep(place, below=False)
  folder = place / temporary_name()
  try:
    folder.mkdir(mode=0o700)
  except OSError as error:
    raise unwritable(folder, error, "make room, or set TMPDIR to another folder") from None
  return folder


_opened: dict[pathlib.Path, "_Copy"] = {}


def downloaded(place: str | pathlib.Path) -> str | pathlib.Path:
  """Returns a folder with what a run in a store holds now; others are given as they are.

  The folder is there as long as the process; what is written to it stays there, but for `keep`.

  Raises:
    InputError: it can't be read, or isn't there.
  """
  if not is_remote(place):
    return place
  store = Store.open(place)
  root = _temporary_folder()
  atexit.register(shutil.rmtree, root, ignore_errors=True)
  folder = root / store.root.rpartition("/")[2]
  copy = _Copy(store, folder, None)
  if not copy.pull():
    raise InputError(f"there is no run directory {store.place}; give the --workdir of jseg train")
  _opened[folder] = copy
  return folder


def keep(folder: pathlib.Path) -> None:
  """Copies what was written to a folder that `downloaded` gave to its store; else does nothing."""
  if folder in _opened:
    _opened[folder].push()


def cached(place: str) -> str:
  """Returns a folder with the files of a data set in a store; it is kept, and brought up to date.

  Raises:
    InputError: it can't be read, or isn't there.
  """
  store = Store.open(place)
  name = hashlib.sha256(store.place.encode()).hexdigest()[:16]
  folder = cache("remote", name, store.root.rpartition("/")[2])
  known_file = folder.parent / "versions.json"
  known = json.loads(known_file.read_text()) if known_file.is_file() else {}
  there = store.versions()
  if not there:
    raise InputError(f"{place} holds no files; name the folder of a data set")
  for path in folder.rglob("*"):
    if path.is_file() and path.relative_to(folder).as_posix() not in there:
      path.unlink()
  for name, version in there.items():
    if known.get(name) != version or not (folder / name).is_file():
      write_bytes(folder / name, store.read_listed(name))
  write_bytes(known_file, json.dumps(there).encode())
  return str(folder)


@dataclasses.dataclass(frozen=True)
class Store:
  """A folder in an object store.

  Attributes:
    place: its name, as "gs://BUCKET/NAME".
    root: the same without the scheme.
    files: the store.
  """

  place: str
  root: str
  files: Any

  @classmethod
  def open(cls, place: str | pathlib.Path) -> "Store":
    """Opens a store. Raises InputError if there is none of that kind, or its package is missing."""
    scheme, _, rest = str(place).partition(":")
    name = f"{scheme}://{rest.strip('/')}"  # pathlib makes one slash of two
    try:
      files, root = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError) as error:
      raise InputError(
        f"{name}: {error}; gs:// needs the package gcsfs, s3:// needs s3fs (pip install gcsfs s3fs)"
      ) from error
    return cls(name, str(root).rstrip("/"), files)

  @contextlib.contextmanager
  def _told(self, name: str, what: str) -> Iterator[None]:
    try:
      yield
    except FileNotFoundError:
      raise
    # Each package of fsspec raises errors of its own service.
    except Exception as error:
      reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
      raise InputError(
        f"{self.place}/{name} can't be {what} ({reason}); look at the name, the network and your "
        "rights, then start the same command again"
      ) from error

  def versions(self) -> dict[str, str]:
    """What tells one content of each object from another, by its name below the folder."""
    with self._told("", "listed"):
      self.files.invalidate_cache()
      try:
        found = self.files.find(self.root, detail=True)
      except FileNotFoundError:
        return {}
    start = len(self.root) + 1
    names = {name[start:]: _version(info) for name, info in found.items()}
    names = {name: version for name, version in names.items() if name and not name.endswith("/")}
    if odd := next((name for name in names if ".." in name.split("/")), None):
      raise InputError(f"{self.place}/{odd}: the name leads out of the folder; rename that object")
    return names

  def read_listed(self, name: str) -> bytes:
    """The content of an object that was there a moment ago. Raises InputError."""
    try:
      return self.read(name)
    except FileNotFoundError as error:
      raise InputError(
        f"{self.place}/{name} was removed while the files beside it were read, as a training does "
        "with older checkpoints; start the same command again"
      ) from error

  def read(self, name: str) -> bytes:
    """The content of an object. Raises FileNotFoundError, or InputError."""
    with self._told(name, "read"):
      content: bytes = self.files.cat_file(f"{self.root}/{name}")
      return content

  def write(self, name: str, content: bytes, *, new: bool = False) -> None:
    """Makes or replaces an object; with `new`, raises FileExistsError where there is one."""
    with self._told(name, "written"):
      mode = {"mode": "create"} if new else {}
      try:
        self.files.pipe_file(f"{self.root}/{name}", content, **mode)
      except FileExistsError:
        taken = True
      else:
        taken = False
    if taken:
      raise FileExistsError(f"{self.place}/{name}")

  def remove(self, name: str) -> None:
    """Removes an object, if it is there."""
    with self._told(name, "removed"), contextlib.suppress(FileNotFoundError):
      self.files.rm_file(f"{self.root}/{name}")


def _version(info: Mapping[str, Any]) -> str:
  known = ("etag", "ETag", "md5Hash", "generation", "mtime", "updated", "LastModified", "created")
  return " ".join(str(info[key]) for key in ("size", *known) if info.get(key) is not None)


class _Copy:
  """A run in a store and its copy on this machine.

  Args:
    store: the run in the store.
    folder: the copy.
    lock: the lock, without which nothing is written any more; None: there is none.
  """

  def __init__(self, store: Store, folder: pathlib.Path, lock: "_Lock | None"):
    self._store, self._folder, self._lock = store, folder, lock
    self._same: dict[str, tuple[int, int]] = {}  # of files that are the same in both
    self._guard = threading.Lock()

  def pull(self) -> bool:
    """Copies the run from the store, complete checkpoints alone; whether there is one."""
    there = self._store.versions()
    steps = {name.removeprefix(_MARKS) for name in there if name.startswith(_MARKS)}
    for name in there:
      step = _STEP.match(name)
      if name.startswith(_MARKS) or _LOCAL.search(name) or (step and step[1] not in steps):
        continue
      write_bytes(self._folder / name, self._store.read_listed(name))
      self._same[name] = _stamp(self._folder / name)
    return bool(there)

  def push(self) -> None:
    """Copies what has changed since, and removes the checkpoints that aren't kept.

    Raises:
      InputError: the lock was lost, or something can't be written.
    """
    with self._guard:
      if self._lock is not None:
        self._lock.check_held()
      # In this order: a configuration is there before what it describes, and a checkpoint is
      # complete before an older one goes.
      files = self._files()
      steps = {match[1] for name in files if (match := _STEP.match(name))}
      others = [name for name in files if not _STEP.match(name)]
      for name in sorted(others, key=lambda name: (name != "classes.json", name != "config.json")):
        self._write(name, files[name])
      for step in sorted(steps, key=int):
        part = {n: s for n, s in files.items() if n.startswith(f"checkpoints/{step}/")}
        if any(self._same.get(name) != stamp for name, stamp in part.items()):
          self._store.remove(f"{_MARKS}{step}")
          for name, stamp in part.items():
            self._write(name, stamp)
          self._store.write(f"{_MARKS}{step}", b"complete")
      # Also of a checkpoint whose files are being removed right now.
      gone = [name for name in self._same if name not in files]
      for step in {match[1] for name in gone if (match := _STEP.match(name))}:
        self._store.remove(f"{_MARKS}{step}")
      for name in gone:
        self._store.remove(name)
        del self._same[name]

  def _files(self) -> dict[str, tuple[int, int]]:
    """Size and time of all files of the copy that are finished, by name."""
    found = {}
    # Unlike pathlib, os.walk goes on where a folder is removed or renamed meanwhile.
    for folder, _, names in os.walk(self._folder):
      for path in (pathlib.Path(folder, name) for name in names):
        name = path.relative_to(self._folder).as_posix()
        with contextlib.suppress(FileNotFoundError):
          if not _LOCAL.search(name):
            found[name] = _stamp(path)
    return found

  def _write(self, name: str, stamp: tuple[int, int]) -> None:
    """Copies a file unless it is the same."""
    if self._same.get(name) != stamp:
      with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        self._store.write(name, (self._folder / name).read_bytes())
        self._same[name] = stamp


def _stamp(path: pathlib.Path) -> tuple[int, int]:
  found = path.stat()
  return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _copying(copy: _Copy) -> Iterator[None]:
  """Copies what is new every few seconds."""
  ended = threading.Event()

  def work() -> None:
    while not ended.wait(SECONDS):
      try:
        copy.push()
      except InputError as error:  # perhaps the next time; at the end it is raised
        ERRORS.print(f"! {error}", style="yellow", soft_wrap=True)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


class _Lock:
  """The object that says who writes a run.

  Args:
    store: the run.
  """

  NAME = "lock"

  def __init__(self, store: Store):
    self._store, self._beats, self._lost = store, 0, False
    self._own = {**dataclasses.asdict(Owner.here()), "token": secrets.token_hex(8)}

  def _content(self) -> bytes:
    return json.dumps({**self._own, "beats": self._beats}).encode()

  def take(self) -> Owner | None:
    """Takes the lock; returns who holds it where it can't."""
    try:
      self._store.write(self.NAME, self._content(), new=True)
      return None
    except FileExistsError:
      pass
    holder = self._read()
    if holder is None:
      return self.take()
    if not self._is_gone(holder):
      return _owner(holder)
    if self._read() == holder:  # Another process may have replaced it meanwhile.
      self._store.remove(self.NAME)
    return self.take()

  def _is_gone(self, holder: dict[str, Any]) -> bool:
    """Whether a holder has ended, or gives no sign of life for long."""
    owner = _owner(holder)
    if owner.is_near:
      return owner.is_gone()
    ERRORS.print(
      f"{self._store.place} was left by {owner}; waiting for a sign of life", soft_wrap=True
    )
    until = time.monotonic() + _SILENT * SECONDS
    while time.monotonic() < until:
      time.sleep(SECONDS / 10)
      if self._read() != holder:
        return False
    return True

  def _read(self) -> dict[str, Any] | None:
    try:
      values = json.loads(self._store.read(self.NAME))
      return values if isinstance(values, dict) else {}
    except FileNotFoundError:
      return None
    except ValueError:
      return {}

  def beat(self, ended: threading.Event) -> None:
    """Gives signs of life until it has ended, or another process has taken the lock."""
    while not ended.wait(SECONDS) and not self._lost:
      with contextlib.suppress(InputError):  # perhaps the next time
        self.check_held()
        self._beats += 1
        self._store.write(self.NAME, self._content())

  def check_held(self) -> None:
    """Raises InputError if another process has taken the lock, now or before."""
    self._lost = self._lost or not self._is_own()
    if self._lost:
      raise InputError(
        f"{self._store.place} was taken over by another process: nothing more of this one is "
        "written there"
      )

  def _is_own(self) -> bool:
    return (self._read() or {}).get("token") == self._own["token"]

  def release(self) -> None:
    """Removes it, if it is still ours."""
    with contextlib.suppress(InputError):
      if self._is_own():
        self._store.remove(self.NAME)


def _owner(values: Mapping[str, Any]) -> Owner:
  pid = values.get("pid")
  host, since = (str(values.get(key, "unknown")) for key in ("host", "since"))
  return Owner(host, pid if isinstance(pid, int) else 0, since)


@contextlib.contextmanager
def _locked(store: Store) -> Iterator[_Lock]:
  lock = _Lock(store)
  if (holder := lock.take()) is not None:
    raise InputError(
      f"{store.place} is in use by {holder}; wait for it, stop it, or name another --workdir. If "
      f"that process is gone for certain, remove {store.place}/{_Lock.NAME}"
    )
  ended = threading.Event()
  signs = threading.Thread(target=lock.beat, args=(ended,), daemon=True)
  signs.start()
  try:
    yield lock
  finally:
    ended.set()
    signs.join()
    lock.release()
