"""`jseg show-batches`: draws what a training would see."""

import argparse
import pathlib

from jseg.commands import common
from jseg.console import CONSOLE
from jseg.preview import preview

HELP = "draw the first training batches after augmentation, with their targets; trains nothing"
EXAMPLES = """\
  jseg show-batches --config=folder --config.data.root=my_data
  jseg show-batches --config=camvid --config.data.root=camvid --config.augment.rotation=20"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds --config, --batches and --out."""
  common.add_config(parser)
  parser.add_argument("--batches", type=int, default=2, help="number (default: %(default)s)")
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=pathlib.Path("batches.png"),
    help="picture to write (default: %(default)s)",
  )


def run(arguments: argparse.Namespace) -> None:
  """Draws them."""
  config = common.read_config(arguments)
  common.use_cpu_cores(config.data.batch_size)
  count = preview(config, arguments.out, arguments.batches)
  CONSOLE.print(f"{count} images as the network sees them: {arguments.out}", highlight=False)
