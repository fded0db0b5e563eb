"""A collection of files to predict: which they are, and which files are written for each."""

import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from jseg.record import RECORD, Record
from jseg.types import InputError

_MOST = 5  # names that a message lists
_REMEDY = "rename one of them, or predict them in two calls with two --out folders"


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The files to predict.

  Attributes:
    files: path of each file by name: without suffix, and of files of a folder relative to it, with
      "/" between folders.
    broken: why a file can't even be looked at, by name.
    unused: names of files that aren't read, by suffix.
  """

  files: dict[str, pathlib.Path]
  broken: dict[str, str] = dataclasses.field(default_factory=dict)
  unused: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  def notes(self) -> list[str]:
    """Says what isn't read, a line for each kind."""
    lines = []
    for suffix, names in sorted(self.unused.items()):
      first = ", ".join(names[:_MOST]) + (", ..." if len(names) > _MOST else "")
      kind = f"end in {suffix}" if suffix else "have no suffix"
      lines.append(f"left out: {len(names)} file(s) that {kind} ({first}); convert those you need")
    return lines


def find_inputs(paths: Sequence[pathlib.Path], suffixes: Collection[str]) -> Inputs:
  """Finds the files to predict.

  Files that are named are taken whatever they are called. Of folders and their sub-folders, those
  that have one of the suffixes: not what is hidden, and not the results of earlier predictions.

  Args:
    paths: files and folders.
    suffixes: name endings of what can be read, in lower case.

  Raises:
    InputError: there is no such file, none at all, or two would be called alike.
  """
  found = Inputs({})
  for path in paths:
    if path.is_dir():
      _add_folder(found, path, suffixes)
    elif path.is_file():
      _add(found, stem(path.name, suffixes), path)
    else:
      raise InputError(f"there is no file or folder {path}")
  if not found.files and not found.broken:
    problem = f"{', '.join(map(str, paths))} holds no file of {', '.join(sorted(suffixes))}"
    raise InputError("\n".join([problem, *found.notes()]))
  return found


def stem(name: str, suffixes: Collection[str] = ()) -> str:
  """Returns a file's name without its suffix, the longest of `suffixes` that fits, else the last.

  Args:
    name: the name, also with folders in front.
    suffixes: name endings in lower case.
  """
  folder, slash, leaf = name.rpartition("/")
  fitting = [s for s in suffixes if leaf.lower().endswith(s) and len(leaf) > len(s)]
  suffix = max(fitting, key=len, default=pathlib.PurePath(leaf).suffix)
  return folder + slash + leaf[: len(leaf) - len(suffix)]


def _add(found: Inputs, name: str, path: pathlib.Path) -> None:
  other = found.files.setdefault(name, path)
  if os.path.realpath(other) != os.path.realpath(path):
    raise InputError(f"{other} and {path} would be written to the same name, {name}; {_REMEDY}")


def _add_folder(found: Inputs, folder: pathlib.Path, suffixes: Collection[str]) -> None:
  results: set[pathlib.Path] = set()
  for path, error in _walk(folder, results):
    name = path.relative_to(folder).as_posix()
    if error is not None:
      found.broken[name] = f"{path}: {error}"
    elif not name.lower().endswith(tuple(suffixes)):
      found.unused.setdefault(path.suffix.lower(), []).append(name)
    elif path not in results:
      _add(found, stem(name, suffixes), path)


def _walk(
  folder: pathlib.Path, results: set[pathlib.Path]
) -> Iterator[tuple[pathlib.Path, str | None]]:
  """Every file of a folder and those below it that isn't hidden, or what is wrong with it.

  Args:
    folder: the folder.
    results: takes the results of earlier predictions in a folder before its files are given.
  """
  errors: list[OSError] = []
  seen: set[str] = set()
  for root, folders, files in os.walk(folder, followlinks=True, onerror=errors.append):
    here = pathlib.Path(root)
    folders[:] = sorted(f for f in folders if not f.startswith("."))
    if os.path.realpath(root) in seen:  # by a link
      folders.clear()
      continue
    seen.add(os.path.realpath(root))
    if RECORD in files:
      results.update(here / name for name in Record.read(here).owned)
    for name in sorted(f for f in files if not f.startswith(".") and f != RECORD):
      path = here / name
      if path.is_file():
        yield path, None
      elif path.is_symlink():
        yield path, f"is a link to {os.readlink(path)}, which isn't there; mend or remove it"
  for error in errors:
    yield pathlib.Path(error.filename), f"can't be listed ({error.strerror}); mend its permissions"


def plan_outputs(
  files: Mapping[str, pathlib.Path],
  outputs: Callable[[str], Sequence[str]],
  out: pathlib.Path,
) -> dict[str, list[str]]:
  """Names what is written for each file, before anything is.

  Paths are compared as they really are, links followed, and without case, as some file systems do.

  Args:
    files: inputs by name.
    outputs: names of the files, relative to `out`, that are written for a name.
    out: folder to write to.

  Returns:
    The outputs of each name.

  Raises:
    InputError: an output would meet an input, or another output.
  """
  place = _Places()
  inputs = {key: path for path in files.values() for key in place.keys_of(path)}
  plan = {name: list(outputs(name)) for name in files}
  taken: dict[str, str] = {}
  folders: dict[str, str] = {}
  for name, output in [(name, output) for name, written in plan.items() for output in written]:
    path = out / output
    if (key := place.key(path)) in inputs:
      raise InputError(
        f"{inputs[key]} is an input, and a result of {files[name]} would be written over it; "
        "name another --out"
      )
    if taken.setdefault(key, name) != name:
      raise InputError(
        f"{files[taken[key]]} and {files[name]} would both be written to {path}; {_REMEDY}"
      )
    for parent in list(path.parents)[: output.count("/")]:
      folders.setdefault(place.key(parent), name)
      if parent.exists() and not parent.is_dir():
        raise InputError(f"{parent} is a file, but must be a folder; name another --out")
    if path.is_dir():
      raise InputError(f"{path} is a folder, but must be a file; name another --out")
  for key in taken.keys() & folders.keys():
    raise InputError(
      f"a result of {files[taken[key]]} would be called like the folder for {files[folders[key]]}; "
      f"{_REMEDY}"
    )
  return plan


class _Places:
  """Paths in the form in which they are compared."""

  def __init__(self) -> None:
    self._real = functools.cache(os.path.realpath)

  def key(self, path: pathlib.Path) -> str:
    """The entry of a path in its real folder; if it is a link, not where it leads."""
    return _fold(f"{self._real(path.parent)}/{path.name}")

  def keys_of(self, path: pathlib.Path) -> set[str]:
    """Everything by which a file would be harmed: its entry, and where it leads."""
    return {self.key(path), _fold(os.path.realpath(path))}


def _fold(path: str) -> str:
  return unicodedata.normalize("NFC", path).casefold()
