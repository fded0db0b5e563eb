"""`predict.jsonl`: what the results in a folder are of, so that a second call can go on.

The first line has the settings of all results, and the names of all files that may be written. Each
further line has a file that is done, with what reports need of it, or why it failed. A line follows
when its files are in place, so that whatever is half-done isn't done.
"""

import dataclasses
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from jseg import json_files
from jseg.data.files.channels import numbered_files
from jseg.outputs import write_text
from jseg.types import Arguments, InputError, Json

RECORD = "predict.jsonl"


@dataclasses.dataclass(frozen=True)
class Entry:
  """A file that was predicted.

  Attributes:
    source: path, size in bytes and time of change of the file.
    outputs: files that were written, relative to the folder.
    result: what reports need of it, as plain values.
  """

  source: Mapping[str, object]
  outputs: Sequence[str]
  result: object

  def is_of(self, source: Mapping[str, object]) -> bool:
    """Whether a file is still the same; it may have moved."""
    return all(self.source[key] == source[key] for key in ("size", "changed"))


def describe_source(path: pathlib.Path) -> Json:
  """Returns what a file is recognized by, NAME_0000 with its channels beside it. Raises OSError."""
  every = [each.stat() for each in numbered_files(path).values()]
  return {
    "path": os.path.realpath(path),
    "size": sum(status.st_size for status in every),
    "changed": max(status.st_mtime_ns for status in every),
  }


@dataclasses.dataclass
class Record:
  """The record of a folder.

  Attributes:
    folder: the folder.
    settings: settings of all results in it; None: there is no record yet.
    owned: files that are results, or may be half of one, relative to the folder.
    done: entries by name.
  """

  folder: pathlib.Path
  settings: Json | None = None
  owned: set[str] = dataclasses.field(default_factory=set)
  done: dict[str, Entry] = dataclasses.field(default_factory=dict)

  @property
  def path(self) -> pathlib.Path:
    """Path of the file."""
    return self.folder / RECORD

  @classmethod
  def read(cls, folder: pathlib.Path) -> "Record":
    """Reads the record of a folder, empty where there is none.

    Raises:
      InputError: the file of this name is something else.
    """
    record = cls(folder)
    if not record.path.is_file():
      return record
    remedy = "remove it, or name another --out"
    try:
      head, *rest = json_files.read_lines(record.path, remedy)
      record._fill(head, rest)
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"{record.path} is no record of jseg predict, or damaged ({error}); {remedy}"
      ) from None
    return record

  def _fill(self, head: Arguments, rest: Iterable[Arguments]) -> None:
    """Takes the lines of a file. Raises KeyError or TypeError if they are others."""
    self.settings, files = dict(head["settings"]), head["files"]
    # Names were once as macOS decomposes them; their files still are.
    self.owned = {*files, *map(_composed, files)}
    for line in rest:
      if "result" in line:
        entry = Entry(line["source"], line["outputs"], line["result"])
        self.done[_composed(line["name"])] = entry

  def refuse_strangers(self, files: Iterable[str]) -> None:
    """Raises InputError if one of these files is there and isn't known to be a result."""
    paths = (self.folder / file for file in sorted(files) if file not in self.owned)
    if strangers := [path for path in paths if os.path.lexists(path)]:
      more = f", and {len(strangers) - 1} more like it," if len(strangers) > 1 else ""
      raise InputError(
        f"{strangers[0]}{more} is there already and isn't known to be a result of jseg predict; "
        "name another --out, or add --overwrite to replace what bears the name of a result"
      )

  def missing(
    self,
    files: Mapping[str, pathlib.Path],
    settings: Mapping[str, object],
    failed: dict[str, str],
    *,
    overwrite: bool,
  ) -> dict[str, Json]:
    """Which files are to be predicted, because their results aren't there or aren't of them.

    Entries that don't count any more are taken out of `done`.

    Args:
      files: all files by name.
      settings: the settings, to which all results in the folder must belong.
      failed: takes why a file can't be looked at.
      overwrite: predicts all again.

    Returns:
      Their sources by name.

    Raises:
      InputError: there are results of other settings, or of another file of the same name.
    """
    if different := self._differences(settings):
      others = [name for name in self.done if name not in files]
      self._refuse_settings(different, others, overwrite)
    todo = {}
    for name, path in files.items():
      try:
        source = describe_source(path)
      except OSError as error:
        failed[name] = f"{path}: can't be read ({error.strerror}); check it and its permissions"
        continue
      if overwrite or not self.is_done(name, source):
        todo[name] = source
        entry = self.done.pop(name, None)
        if entry and not overwrite and entry.source["path"] != source["path"]:
          raise InputError(
            f"{self.folder} holds the result of {entry.source['path']}, which bears the same name "
            f"as {path}; name another --out, or add --overwrite to replace it"
          )
    return todo

  def _refuse_settings(self, different: list[str], others: list[str], overwrite: bool) -> None:
    begin = f"{self.folder} holds results of other settings ({'; '.join(different)})"
    if not overwrite:
      raise InputError(f"{begin}; name another --out, or add --overwrite to predict all again")
    if others:
      raise InputError(
        f"{begin}, also of {len(others)} file(s) that aren't given now, such as {others[0]}; "
        "name another --out"
      )

  def _differences(self, settings: Mapping[str, object]) -> list[str]:
    """Says which settings differ from those of the results; where a run lies doesn't matter."""
    if self.settings is None or not self.done:
      return []
    before = {key: value for key, value in self.settings.items() if key != "run"}
    return [
      f"{key}: was {before.get(key)}, is {settings.get(key)}"
      for key in sorted(before.keys() | settings.keys())
      if before.get(key) != settings.get(key)
    ]

  def begin(self, settings: Mapping[str, object], files: Iterable[str]) -> None:
    """Writes the record as a whole: what is done, and what is going to be written.

    Args:
      settings: settings of all results.
      files: files that are results, or are going to be.

    Raises:
      WriteError: it can't be written.
    """
    self.settings, self.owned = dict(settings), self.owned.union(files)
    head = {"settings": self.settings, "files": sorted(self.owned)}
    entries = [{"name": name, **dataclasses.asdict(entry)} for name, entry in self.done.items()]
    write_text(self.path, "".join(json_files.line(line) for line in [head, *entries]))

  def add(self, name: str, entry: Entry) -> None:
    """Adds a file whose results are in place. Raises WriteError."""
    self.done[name] = entry
    json_files.append(self.path, {"name": name, **dataclasses.asdict(entry)})

  def add_failure(self, name: str, reason: str) -> None:
    """Adds why a file failed, for whoever reads the record. Raises WriteError."""
    json_files.append(self.path, {"name": name, "failed": reason})

  def is_done(self, name: str, source: Mapping[str, object]) -> bool:
    """Whether the results of a file are there and are of what it is now."""
    entry = self.done.get(name)
    return (
      entry is not None
      and entry.is_of(source)
      and all((self.folder / output).is_file() for output in entry.outputs)
    )

  def results(self) -> Json:
    """Returns what reports need of each file, by name, in the order of the names."""
    return {name: self.done[name].result for name in sorted(self.done)}


def _composed(name: str) -> str:
  return unicodedata.normalize("NFC", name)
