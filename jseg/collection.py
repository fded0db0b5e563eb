"""A collection of files to predict: which they are, and which files are written for each."""

import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence

from jseg.data.files import FileError
from jseg.data.files.channels import FIRST_SUFFIXES, further_channels
from jseg.data.files.listing import list_files, split_suffix, usual_suffixes
from jseg.outputs import refuse_remote
from jseg.record import RECORD, Record
from jseg.types import InputError

_REMEDY = "rename one of them, or predict them in two calls with two --out folders"


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The files to predict.

  Attributes:
    files: path of each file by name: without suffix, in Unicode's form NFC, and of files of a
      folder relative to it, with "/" between folders.
    broken: why a file or folder can't even be looked at, by path.
    notes: what else is in the folders and isn't used, by count and name.
  """

  files: dict[str, pathlib.Path]
  broken: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: list[FileError] = dataclasses.field(default_factory=list)


def find_inputs(paths: Sequence[pathlib.Path], suffixes: Collection[str]) -> Inputs:
  """Finds the files to predict.

  Files that are named are taken whatever they are called. Of folders, what `jseg.data.list_files`
  lists, but for the results of earlier predictions. Where first channels of volumes are among the
  suffixes, NAME_0000 and its further channels are one file, NAME.

  Args:
    paths: files and folders.
    suffixes: name endings of what can be read, in lower case.

  Raises:
    InputError: there is no such file, none at all, or two would be called alike; a folder that is
      named can't be read.
  """
  found = Inputs({})
  for path in paths:
    refuse_remote(path, "copy the images to this machine")
    if path.is_dir():
      _add_folder(found, path, suffixes)
    elif path.is_file():
      _add(found, _name(path.name, suffixes), path)
    else:
      raise InputError(f"there is no file or folder {path}")
  if FIRST_SUFFIXES[0] in suffixes:  # they are read with their first
    for name in further_channels(found.files):
      del found.files[name]
  if not found.files and not found.broken:
    problem = f"{', '.join(map(str, paths))} holds no file of {usual_suffixes(suffixes)}"
    raise InputError("\n".join([problem, *map(str, found.notes)]))
  return found


def _name(file: str, suffixes: Collection[str]) -> str:
  """A file's name without its suffix, or without whatever follows its last dot."""
  stem, suffix = split_suffix(_nfc(file), suffixes)
  return stem if suffix else pathlib.PurePath(stem).stem


def _add(found: Inputs, name: str, path: pathlib.Path) -> None:
  other = found.files.setdefault(name, path)
  if os.path.realpath(other) != os.path.realpath(path):
    raise InputError(f"{other} and {path} would be written to the same name, {name}; {_REMEDY}")


def _add_folder(found: Inputs, folder: pathlib.Path, suffixes: Collection[str]) -> None:
  listing = list_files(folder, suffixes, _results(folder))
  for name, path in listing.files.items():
    _add(found, name, path)
  for problem in listing.problems:
    if problem.kind == "twice":
      path = pathlib.Path(problem.file)
      _add(found, _name(path.relative_to(folder).as_posix(), suffixes), path)
    elif problem.kind == "layout":  # a link in a circle, which hides no file
      found.notes.append(problem)
    else:
      found.broken[problem.file] = str(problem)
  found.notes.extend(listing.notes)


def _results(folder: pathlib.Path) -> Callable[[pathlib.Path], bool]:
  """Tells results of earlier predictions in a folder or one below it, and their records."""

  @functools.cache
  def owned(place: pathlib.Path) -> frozenset[str]:
    return frozenset(map(_nfc, Record.read(place).owned))

  def is_result(path: pathlib.Path) -> bool:
    if path.name == RECORD:
      return True
    places = list(path.parents)[: len(path.relative_to(folder).parts)]
    return any(_nfc(path.relative_to(place).as_posix()) in owned(place) for place in places)

  return is_result


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
  return _nfc(path).casefold()


def _nfc(text: str) -> str:
  return unicodedata.normalize("NFC", text)
