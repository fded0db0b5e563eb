"""`jseg evaluate`: measures a checkpoint on a split."""

import argparse
from collections.abc import Mapping

from rich.table import Table

from jseg.commands import common
from jseg.console import CONSOLE
from jseg.evaluation import WORST, Evaluation, evaluate

HELP = "measure a checkpoint on a split, at the images' original size"
EXAMPLES = """\
  jseg evaluate runs/quickstart
  jseg evaluate runs/camvid --split test
  jseg evaluate runs/camvid --protocol pspnet
  jseg evaluate runs/camvid --crf --metrics boundary
  jseg evaluate runs/isbi2012 --metrics rand=cell"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  common.add_run(parser)
  common.add_dataset(parser)
  parser.add_argument("--batch-size", type=int, help="images per batch, over all devices")
  common.add_protocol(parser)
  parser.add_argument(
    "--metrics",
    nargs="+",
    default=[],
    metavar="METRIC",
    help="further metrics of whole images: boundary (IoU of boundaries), rand=CLASS (Rand score, "
    "objects being the connected parts of this class), of volumes surface=MM (HD95, and surface "
    "Dice within so many millimeters), or your own as package.module:Name",
  )
  parser.add_argument(
    "--worst",
    type=int,
    default=WORST,
    metavar="N",
    help="images to draw, those with the lowest score (default: %(default)s)",
  )
  common.add_crf(parser)
  common.add_hosts(parser)


def run(arguments: argparse.Namespace) -> None:
  """Evaluates and prints the metrics."""
  if not common.join_hosts(arguments, arguments.run_directory):
    common.use_cpu_cores()
  opened = common.open_run(arguments)
  result = evaluate(
    opened,
    split=arguments.split,
    checkpoint=arguments.checkpoint,
    root=arguments.root,
    batch_size=arguments.batch_size,
    protocol=arguments.protocol,
    metrics=arguments.metrics,
    changes=common.changes(arguments),
    worst=arguments.worst,
  )
  title = f"{arguments.run_directory}, step {result.step}, {result.split}"
  CONSOLE.print(result.table(title))
  for key, value in numbers(result.extra).items():
    CONSOLE.print(f"{key}: {value:.2f}" if key.endswith("_mm") else f"{key}: {100 * value:.1f} %")
  if "without_crf" in result.extra:
    CONSOLE.print(crf_table(result))
  if result.written:
    CONSOLE.print(f"written to {opened.files.evaluation}")


def numbers(extra: Mapping[str, object]) -> dict[str, float]:
  """Returns the metrics that are one number."""
  return {k: v for k, v in extra.items() if isinstance(v, float)}


def crf_table(result: Evaluation) -> Table:
  """Returns the metrics before and after the protocol's CRF, as a table."""
  without = result.extra["without_crf"]
  before = numbers(without if isinstance(without, dict) else {})
  after = {**result.scores.summary(), **numbers(result.extra)}
  table = Table("metric", "without CRF", "with CRF", title="dense CRF", title_justify="left")
  for key in ("miou", "pixel_accuracy", *numbers(result.extra)):
    if key in before:
      table.add_row(key, f"{100 * before[key]:.1f} %", f"{100 * after[key]:.1f} %")
  return table
