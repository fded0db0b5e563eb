"""`jseg tune-crf`: searches the parameters of the dense CRF after a network."""

import argparse

from rich.table import Table

from jseg.commands import common
from jseg.console import CONSOLE
from jseg.crf import parse_params
from jseg.tuning import RANGES, tune_crf

HELP = "search the parameters of the CRF that --crf then uses, over the ranges of DeepLab's papers"
EXAMPLES = """\
  jseg tune-crf runs/mine
  jseg tune-crf runs/mine --images 100 --ranges v1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  common.add_run(parser)
  common.add_dataset(parser)
  common.add_protocol(parser)
  parser.add_argument(
    "--images", type=int, default=20, help="images of the split; the papers take 100 (default: 20)"
  )
  parser.add_argument(
    "--ranges", choices=list(RANGES), default="v2", help="DeepLab V1's or V2's (default: v2)"
  )
  parser.add_argument(
    "--crf-params", metavar="PARAMS", help="KEY=VALUE,... or a JSON file: what isn't searched"
  )


def run(arguments: argparse.Namespace) -> None:
  """Searches and prints the best settings."""
  common.use_cpu_cores()
  opened = common.open_run(arguments)
  text = arguments.crf_params
  result = tune_crf(
    opened,
    split=arguments.split,
    checkpoint=arguments.checkpoint,
    root=arguments.root,
    images=arguments.images,
    ranges=arguments.ranges,
    base=None if text is None else parse_params(text),
    changes=common.changes(arguments),
    protocol=arguments.protocol,
  )
  table = Table(*result.trials[0][0], "mIoU", title="the best of them", title_justify="left")
  for values, miou in result.trials[:10]:
    table.add_row(*(f"{value:g}" for value in values.values()), f"{100 * miou:.2f} %")
  CONSOLE.print(table)
  CONSOLE.print(f"without CRF: {100 * result.without:.2f} %")
  if not result.miou > result.without:
    CONSOLE.print("no setting is better than none: leave --crf out, or widen the search")
  CONSOLE.print(f"written to {opened.files.crf}")
