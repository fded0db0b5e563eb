"""`jseg check-data`: everything that is wrong with a data folder.

Reads through the same functions as preparation, so that what passes here can be prepared.
"""

import os
from pathlib import Path

from jseg.arithmetic import count_bytes
from jseg.console import ERRORS, progress
from jseg.data.check_report import Report, SplitReport
from jseg.data.files import attempt, is_file
from jseg.data.sources import recognize
from jseg.data.sources.base import Example, Item, Source
from jseg.data.sources.pairs import FilePair
from jseg.data.survey import Survey
from jseg.types import Arguments


def check_folder(root: str | os.PathLike[str], options: Arguments | None = None) -> Report:
  """Reads every file of a data folder and reports all that is wrong.

  Args:
    root: a folder in the layout of any source in `jseg.data.sources.SOURCES` that reads folders.
    options: the other arguments of its source, as `data.options` of a configuration.

  Raises:
    InputError: there is nothing to check: no such folder, no layout, no readable classes.json; or
      there is no such option.
  """
  return check_source(recognize(root, options), root)


def check_source(source: Source, root: str | os.PathLike[str]) -> Report:
  """Reads every example of a source and reports all that is wrong; `root` names it."""
  report = Report(Path(root), source.classes, {}, list(source.problems), list(source.notes))
  survey = Survey(source)
  for split, items in source.splits.items():
    report.splits[split] = contents = SplitReport(len(items))
    for item in progress(items, f"Checking {split}", len(items), ERRORS):
      example = _check_item(item, source, contents, report)
      if example is not None:
        survey.add(split, f"{split}/{item.name}", example)
        report.notes += example.notes
    report.problems += survey.refusals(split) + survey.obstacles(split)
  report.notes += survey.notes()
  return report


def _check_item(
  item: Item, source: Source, contents: SplitReport, report: Report
) -> Example | None:
  """Reads an item and counts what is in it; its problems go to the report."""
  if not isinstance(item, FilePair):
    example, problems = attempt(item.load)
    if example is not None:
      contents.sizes[example.size] += 1
      contents.add_pixels(example.counts, source.classes)
  elif not (is_file(item.image) and is_file(item.mask)):
    return None  # among the source's problems already
  else:
    found = item.examine()
    example, problems = found.example, list(found.problems)
    if found.size is not None:
      contents.sizes[found.size] += 1
    if found.label is not None:
      contents.add_pixels(count_bytes(found.label.ids), source.classes)
  if example is not None and example.values is not None:
    contents.add_values(example.values)
  if example is not None and example.objects is not None:
    contents.add_objects(example.objects, len(source.classes.names))
  known = {problem.file for problem in source.problems}
  report.problems += [problem for problem in problems if problem.file not in known]
  return example
