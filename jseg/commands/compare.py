"""`jseg compare`: runs side by side, and how sure their differences are."""

import argparse
import math
import pathlib

from rich.table import Table

from jseg import json_files
from jseg.comparison import Comparison, Entry, compare
from jseg.console import CONSOLE
from jseg.metrics.images import LEVEL
from jseg.outputs import try_folder
from jseg.report.plots import Curve, save_comparison

HELP = "compare runs: parameters, speed, scores by class and their differences, and a plot"
EXAMPLES = """\
  jseg compare runs/unet runs/deeplab_v3
  jseg compare runs/a runs/b runs/c --split test --out runs/compare"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  parser.add_argument(
    "runs", nargs="+", metavar="RUN", help="run directories; the first is what others differ from"
  )
  parser.add_argument(
    "--split", help="split whose evaluations are compared (default: the first run's validation)"
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=pathlib.Path("runs/compare"),
    help="folder for compare.png and compare.json (default: %(default)s)",
  )


def run(arguments: argparse.Namespace) -> None:
  """Compares, prints tables, and draws."""
  try_folder(arguments.out, "name another --out")
  comparison = compare(arguments.runs, arguments.split)
  CONSOLE.print(runs_table(comparison))
  if any(entry.by_class for entry in comparison.entries):
    CONSOLE.print(classes_table(comparison))
  for note in comparison.notes:
    CONSOLE.print(f"! {note}", style="yellow", soft_wrap=True, highlight=False)
  json_files.write(arguments.out / "compare.json", comparison.to_dict())
  draw(comparison, arguments.out / "compare.png")
  CONSOLE.print(f"plot: {arguments.out / 'compare.png'}, numbers: {arguments.out / 'compare.json'}")


def runs_table(comparison: Comparison) -> Table:
  """Returns size, speed and scores of the runs, a column each."""
  entries = comparison.entries
  table = _table(f"evaluation of {comparison.split}", comparison)
  table.add_row("network", *(entry.network for entry in entries))
  table.add_row("parameters", *(f"{entry.parameters:,}" for entry in entries))
  table.add_row("canvas", *(" x ".join(map(str, entry.size)) for entry in entries))
  table.add_row("GFLOPs an image", *(_or_blank(entry.flops, 1e9, "{:.3g}") for entry in entries))
  speeds = [_or_blank(entry.images_per_second, 1, "{:.1f}") for entry in entries]
  table.add_row("training images/s", *speeds)
  best = [_score(entry, entry.best, entry.best_step) for entry in entries]
  table.add_row("best in the log", *best, end_section=True)
  scores = [_score(entry, entry.score, entry.scores.get("step")) for entry in entries]
  table.add_row("evaluation", *scores)
  points = [_points(each.mean, each.intervals.get("")) for each in comparison.differences]
  table.add_row("difference", "", *points)
  table.caption = (
    f"differences in points from the first run; in brackets {100 * LEVEL:.0f} % intervals by the "
    "bootstrap over the images of the split"
  )
  return table


def classes_table(comparison: Comparison) -> Table:
  """Returns the scores of the classes, and how they differ from the first run's."""
  table = _table(f"by class, {comparison.split}", comparison)
  differences = [None, *comparison.differences]
  for name in dict.fromkeys(name for entry in comparison.entries for name in entry.by_class):
    row = []
    for entry, difference in zip(comparison.entries, differences, strict=True):
      text = _percent(entry.by_class[name]) if name in entry.by_class else ""
      if difference is not None and name in difference.by_class:
        text += "  " + _points(difference.by_class[name], difference.intervals.get(name))
      row.append(text.rstrip())
    table.add_row(name, *row)
  return table


def _table(title: str, comparison: Comparison) -> Table:
  table = Table(title=title, title_justify="left")
  table.add_column("")
  for entry in comparison.entries:
    table.add_column(entry.name, justify="right", overflow="fold")
  return table


def draw(comparison: Comparison, path: pathlib.Path) -> None:
  """Draws losses and metrics over the steps, and the scores of the classes side by side."""
  curves = []
  for entry in comparison.entries:
    losses = [(each["step"], each["loss"]) for each in entry.lines if each.get("loss") is not None]
    # Training has the metric too, of augmented crops.
    scores = [
      (each["step"], 100 * each[entry.metric])
      for each in entry.lines
      if each.get(entry.metric) is not None and "loss" not in each
    ]
    by_class = {name: 100 * value for name, value in entry.by_class.items()}
    curves.append(Curve(entry.name, losses, scores, by_class))
  titles = dict.fromkeys(entry.title for entry in comparison.entries)
  save_comparison(curves, f"validation {' / '.join(titles)} in %", comparison.split, path)


def _or_blank(value: float | None, unit: float, form: str) -> str:
  return "" if value is None else form.format(value / unit)


def _percent(fraction: float) -> str:
  return "absent" if math.isnan(fraction) else f"{100 * fraction:.1f} %"


def _score(entry: Entry, score: float | None, step: int | None) -> str:
  return "" if score is None else f"{entry.title} {_percent(score)} (step {step})"


def _points(difference: float, interval: tuple[float, float] | None) -> str:
  if math.isnan(difference):
    return ""
  text = f"{100 * difference:+.1f}"
  if interval is None or math.isnan(interval[0]):
    return text
  return f"{text} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
