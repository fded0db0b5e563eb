"""`jseg check-data`: everything that is wrong with a data folder.

Reads through the same functions as preparation, so that what passes here can be prepared.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from jseg.console import ERRORS, progress
from jseg.data.check_report import Report, SplitReport
from jseg.data.files import FileError
from jseg.data.files.masks import check_binary
from jseg.data.sources import recognize
from jseg.data.sources.base import Example, Item, Source
from jseg.data.sources.pairs import FilePair

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def check_folder(root: str | os.PathLike) -> Report:
  """Reads every file of a data folder and reports all that is wrong.

  Args:
    root: a folder in the layout of any source in `jseg.data.sources.SOURCES` that reads folders.

  Raises:
    InputError: there is nothing to check: no such folder, no layout, no readable classes.json.
  """
  source = recognize(root)
  report = Report(Path(root), source.classes, {}, list(source.problems))
  for split, items in source.splits.items():
    report.splits[split] = contents = SplitReport(len(items))
    for item in progress(items, f"Checking {split}", len(items), ERRORS):
      _check_item(item, source, contents, report)
    _, found = attempt(check_binary, contents.pixels, source.classes, f"split {split}")
    report.problems += found
  return report


def attempt(
  function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> tuple[Result | None, list[FileError]]:
  """Calls a function: returns (its result, []), or (None, [the problem])."""
  try:
    return function(*args, **kwargs), []
  except FileError as problem:
    return None, [problem]


def _check_item(item: Item, source: Source, contents: SplitReport, report: Report) -> None:
  is_pair = isinstance(item, FilePair)
  found: list[FileError] = []
  if isinstance(item, FilePair):
    if not (item.image.is_file() and item.mask.is_file()):
      return  # among the source's problems already
    found = _check_pair(item, contents)
  if not found and (source.has_objects or not is_pair):
    example, found = attempt(item.load)
    if example is not None:
      _add_example(example, contents, len(source.classes.names), is_pair)
      report.notes += example.notes
  known = set() if is_pair else {problem.file for problem in source.problems}
  report.problems += [problem for problem in found if problem.file not in known]


def _check_pair(pair: FilePair, contents: SplitReport) -> list[FileError]:
  """Checks image, mask, sizes and values on their own, so that one problem hides no other."""
  image, problems = attempt(pair.read_image)
  raw, found = attempt(pair.read_mask)
  problems += found
  if image is not None:
    contents.sizes[image.size] += 1
  if image is not None and raw is not None:
    problems += attempt(pair.check, image, raw)[1]
  if raw is not None:
    label, found = attempt(pair.make_label, raw)
    problems += found
    if label is not None:
      _add_pixels(np.bincount(label.ravel(), minlength=256), contents)
  return problems


def _add_example(example: Example, contents: SplitReport, k: int, is_pair: bool) -> None:
  if not is_pair:  # `_check_pair` has counted these already
    contents.sizes[example.size] += 1
    _add_pixels(example.counts, contents)
  if example.objects is not None:
    counts = np.bincount(example.objects.classes[~example.objects.crowd], minlength=k)
    if not contents.objects.size:
      contents.objects, contents.images_with_objects = np.zeros((2, k), np.int64)
    contents.objects += counts
    contents.images_with_objects += counts > 0
    contents.most = max(contents.most, len(example.objects))


def _add_pixels(counts: np.ndarray, contents: SplitReport) -> None:
  contents.pixels += counts
  contents.images_with += counts > 0
