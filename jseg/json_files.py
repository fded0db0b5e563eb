"""Files of JSON: one object each, or one per line where files grow; any fault is told."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jseg.outputs import GO_ON, unwritable, write_text
from jseg.types import InputError, Json

MetricsLine = dict[str, Any]
"""A line of `metrics.jsonl`: `step`, `split`, and numbers or None by name."""

_MOST_STEPS = 2**31


def read(path: pathlib.Path, remedy: str) -> Json:
  """The object that a file holds.

  Args:
    path: the file.
    remedy: what the user is to do where it is damaged.

  Raises:
    InputError: it can't be read, or holds no JSON object.
  """
  return _parse(_content(path, remedy), str(path), remedy)


def write(path: pathlib.Path, value: Mapping[str, object]) -> None:
  """Writes an object, as a whole or not at all. Raises WriteError."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_lines(path: pathlib.Path, remedy: str) -> list[Json]:
  """The objects of a file, none where there is no file.

  A last line without its end is left out: it was being written when the process was killed.

  Args:
    path: the file.
    remedy: what the user is to do where a line is damaged.

  Raises:
    InputError: it can't be read, or a line is no JSON object; the message names the line.
  """
  if not path.exists():
    return []
  lines = _content(path, remedy).split(b"\n")[:-1]
  return [_parse(line, f"{path}, line {number}", remedy) for number, line in enumerate(lines, 1)]


def read_metrics(path: pathlib.Path) -> list[MetricsLine]:
  """The lines of a run's `metrics.jsonl`.

  Args:
    path: the file; it need not be there.

  Raises:
    InputError: it can't be read, or a line is none of such a log; the message names it.
  """
  remedy = "mend or delete that line, or move the file away: the run goes on without it"
  lines = read_lines(path, remedy)
  for number, line in enumerate(lines, 1):
    if problem := _problem_of_metrics(line):
      raise InputError(f"{path}, line {number} is damaged ({problem}); {remedy}")
  return lines


def _problem_of_metrics(line: Mapping[str, object]) -> str:
  if not isinstance(line.get("split"), str):
    return "'split' is no name"
  step = line.get("step")
  if type(step) is not int or not 0 <= step < _MOST_STEPS:
    return "'step' is no number of steps"
  for key, value in line.items():
    # Integers of JSON have no bound.
    known = value is None or isinstance(value, float) or (isinstance(value, int) and value < 2**63)
    if key != "split" and not known:
      return f"{key!r} is no number"
  return ""


def _content(path: pathlib.Path, remedy: str) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise InputError(f"{path} can't be read ({error.strerror}); {remedy}") from None


def _parse(text: bytes, where: str, remedy: str) -> Json:
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{where} is damaged ({error}); {remedy}") from None
  if not isinstance(value, dict):
    raise InputError(f"{where} is damaged (it is no JSON object); {remedy}")
  return value


def line(value: Mapping[str, object]) -> str:
  """An object as a line of such a file."""
  return json.dumps(value) + "\n"


def append(path: pathlib.Path, value: Mapping[str, object]) -> None:
  """Appends a line to a file. Raises WriteError."""
  try:
    with path.open("a", encoding="utf-8") as file:
      file.write(line(value))
  except OSError as error:
    raise unwritable(path, error, GO_ON) from None
