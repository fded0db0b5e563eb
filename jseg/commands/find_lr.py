"""`jseg find-lr`: draws the loss over a rising learning rate."""

import argparse
import pathlib

from jseg.commands import common
from jseg.console import CONSOLE
from jseg.lr_finder import find_lr

HELP = "train a few steps with a rising learning rate, draw the loss over it, and suggest a rate"
EXAMPLES = """\
  jseg find-lr
  jseg find-lr --config=folder --config.data.root=my_data --out=runs/lr"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  common.add_config(parser)
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=pathlib.Path("runs/lr"),
    help="folder for lr.png and lr.json (default: %(default)s)",
  )
  parser.add_argument("--steps", type=int, default=100, help="steps (default: %(default)s)")
  parser.add_argument(
    "--low", type=float, default=1e-6, help="lowest learning rate (default: %(default)s)"
  )
  parser.add_argument(
    "--high", type=float, default=10.0, help="highest learning rate (default: %(default)s)"
  )


def run(arguments: argparse.Namespace) -> None:
  """Trains, draws, and prints what it suggests."""
  config = common.read_config(arguments)
  common.use_cpu_cores(config.data.batch_size)
  given = {"steps": arguments.steps, "low": arguments.low, "high": arguments.high}
  curve = find_lr(config, arguments.out, **given)
  CONSOLE.print(
    f"the loss is lowest at a rate of {curve.lowest:.2g}; "
    f"try --config.optim.lr={curve.suggestion:.1g}, and look at {arguments.out / 'lr.png'}",
    highlight=False,
    soft_wrap=True,
  )
