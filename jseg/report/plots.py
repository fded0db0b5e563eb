"""Plots: metrics over the steps, and the confusion matrix."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jseg import json_files
from jseg.metrics import Calibration, SemanticScores
from jseg.metrics.numbers import percent
from jseg.report.figure import make_figure, plain, save_figure


def save_confusion_plot(scores: SemanticScores, names: Sequence[str], path: pathlib.Path) -> None:
  """Draws the confusion matrix, each row as shares of the true class.

  Args:
    scores: metrics of a split.
    names: names of the classes.
    path: PNG to write.
  """
  with np.errstate(invalid="ignore"):
    shares = scores.matrix / scores.matrix.sum(1, keepdims=True)
  k = len(names)
  side = 2.5 + 0.42 * k
  figure = make_figure(side + 1, side)
  axes = figure.subplots()
  picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
  names = [plain(name) for name in names]
  axes.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor")
  axes.set_yticks(range(k), names)
  axes.set_xlabel("predicted")
  axes.set_ylabel("true")
  axes.set_title(f"mIoU {percent(scores.miou)}")
  if k <= 25:
    for row, column in np.ndindex(k, k):
      share = shares[row, column]
      if share >= 0.005:
        color = "white" if share > 0.6 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color)
  figure.colorbar(picture, fraction=0.046, pad=0.04, label="share of the true class")
  save_figure(figure, path)


def save_calibration_plot(calibration: Calibration, path: pathlib.Path) -> None:
  """Draws a reliability diagram (Guo et al. 2017, figure 1), over how many pixels are how sure.

  Args:
    calibration: pixels of a split by confidence, at least one.
    path: PNG to write.
  """
  bins = len(calibration.pixels)
  left = np.arange(bins) / bins
  figure = make_figure(4.5, 5)
  upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
  upper.bar(left, calibration.accuracy, 1 / bins, align="edge")
  upper.plot((0, 1), (0, 1), "--", color="gray", linewidth=1)
  upper.plot(calibration.confidence, calibration.accuracy, "o", color="tab:orange", markersize=3)
  upper.set_ylabel("share of the pixels that are right")
  upper.set_title(f"expected calibration error {percent(calibration.ece)}", fontsize=11)
  upper.set_ylim(0, 1)
  lower.bar(left, calibration.pixels / calibration.pixels.sum(), 1 / bins, align="edge")
  lower.set_ylabel("share of\nall pixels")
  lower.set_xlabel("confidence")
  lower.set_xlim(0, 1)
  save_figure(figure, path)


def save_curves(
  metrics: pathlib.Path, path: pathlib.Path, metric: str = "miou", title: str = "mIoU"
) -> None:
  """Draws the loss and a metric over the steps from a run's metrics.jsonl.

  Args:
    metrics: log of the run, a JSON object per line.
    path: PNG to write.
    metric: key of the metric in the log, a fraction.
    title: name of the metric in the plot.

  Raises:
    InputError: the log is damaged.
  """
  lines = json_files.read_metrics(metrics)
  figure = make_figure(9, 3.5)
  grid = figure.subplots(1, 2)
  for axes, key, factor, heading in zip(
    grid, ("loss", metric), (1, 100), ("loss", f"{title} in %"), strict=True
  ):
    for split in dict.fromkeys(line["split"] for line in lines):
      points = [line for line in lines if line["split"] == split and key in line]
      marker = "." if len(points) < 40 else ""
      steps, values = [p["step"] for p in points], [factor * (p[key] or 0.0) for p in points]
      if points:
        axes.plot(steps, values, marker=marker, label=split)
    axes.set_title(heading)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend()
  save_figure(figure, path)


def save_rate_plot(
  rates: Sequence[float],
  losses: Sequence[float],
  averages: Sequence[float],
  suggestion: float,
  path: pathlib.Path,
) -> None:
  """Draws the loss over a rising learning rate.

  Args:
    rates: learning rate of each step.
    losses: loss of each step.
    averages: moving averages of the losses.
    suggestion: rate to mark.
    path: PNG to write.
  """
  figure = make_figure(6, 3.5)
  axes = figure.subplots()
  axes.plot(rates, losses, color="tab:blue", alpha=0.3, label="loss")
  axes.plot(rates, averages, color="tab:blue", label="average")
  axes.axvline(suggestion, color="tab:orange", linestyle="--", label=f"suggested, {suggestion:.1g}")
  axes.set_xscale("log")
  axes.set_xlabel("learning rate")
  axes.set_ylabel("loss")
  low, high = min(*averages, *losses), max(averages)
  axes.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
  axes.grid(alpha=0.3)
  axes.legend()
  save_figure(figure, path)


@dataclasses.dataclass(frozen=True)
class Curve:
  """A run in a plot of several.

  Attributes:
    name: name of the run.
    losses: (step, loss) of the training.
    scores: (step, metric in percent) of the evaluations.
    by_class: score in percent of each class; NaN where it is absent.
  """

  name: str
  losses: Sequence[tuple[int, float]]
  scores: Sequence[tuple[int, float]]
  by_class: Mapping[str, float]


def save_comparison(curves: Sequence[Curve], title: str, split: str, path: pathlib.Path) -> None:
  """Draws losses and scores of runs over the steps, and below them their classes side by side.

  Args:
    curves: the runs.
    title: heading of the scores.
    split: split that the classes were measured on, for the heading.
    path: PNG to write.
  """
  names = list(dict.fromkeys(name for curve in curves for name in curve.by_class))
  scored = [curve for curve in curves if curve.by_class]
  bars = 0.8 + 0.13 * len(names) * (len(scored) + 0.8)
  figure = make_figure(10, 3.4 + 0.22 * len(curves) + bars)
  heights = [3.4, bars] if names else [3.4]
  grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
  for column, (field, heading) in enumerate((("losses", "training loss"), ("scores", title))):
    axes = figure.add_subplot(grid[0, column])
    for number, curve in enumerate(curves):
      points = np.array(getattr(curve, field), float).reshape(-1, 2)
      marker = "." if len(points) < 40 else ""
      axes.plot(*points.T, marker=marker, color=f"C{number}", label=plain(curve.name))
    axes.set_title(heading)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
  figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", frameon=False)
  if names:
    axes = figure.add_subplot(grid[1, :])
    height = 0.8 / len(scored)
    for number, curve in enumerate(scored):
      places = np.arange(len(names)) + (number - (len(scored) - 1) / 2) * height
      values = [curve.by_class.get(name, np.nan) for name in names]
      axes.barh(places, values, height, color=f"C{curves.index(curve)}")
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_title(f"by class, {split}, in %")
    axes.grid(alpha=0.3, axis="x")
  save_figure(figure, path)
