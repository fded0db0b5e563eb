"""`jseg show-batches`: draws what a training would see."""

import argparse
import pathlib

from jseg import config as configs
from jseg import recipes
from jseg.commands import common
from jseg.console import CONSOLE
from jseg.preview import preview

HELP = "draw the first training batches after augmentation, with their targets; trains nothing"
EXAMPLES = """\
  jseg show-batches folder --set data.root=my_data
  jseg show-batches camvid --set data.root=camvid --set augment.rotation=20 --batches 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds CONFIG, --batches, --out and --set."""
  parser.add_argument("config", metavar="RECIPE", help="as --config of jseg train")
  parser.add_argument("--batches", type=int, default=2, help="number (default: %(default)s)")
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    default=pathlib.Path("batches.png"),
    help="picture to write (default: %(default)s)",
  )
  common.add_set(parser)


def run(arguments: argparse.Namespace) -> None:
  """Draws them."""
  config = recipes.read(arguments.config)
  config = configs.change(config, configs.parse_changes(arguments.set, "--set ", config))
  common.use_cpu_cores(config.data.batch_size)
  count = preview(config, arguments.out, arguments.batches)
  CONSOLE.print(f"{count} images as the network sees them: {arguments.out}", highlight=False)
