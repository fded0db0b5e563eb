"""`jseg get-data`: downloads a published data set and makes a folder of it."""

import argparse
import pathlib

from rich.table import Table

from jseg.console import CONSOLE, ERRORS
from jseg.datasets import DATASETS, archive_place, find_dataset, get_dataset

HELP = "download a published data set and make a folder of it that training reads"
EXAMPLES = """\
  jseg get-data                              # what there is: size, license
  jseg get-data camvid
  jseg get-data hippocampus3d --out data/hippocampus"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds NAME and --out."""
  parser.add_argument("name", nargs="?", help="the data set; without it, all are listed")
  parser.add_argument(
    "--out", type=pathlib.Path, help="folder to make (default: NAME in this folder)"
  )


def run(arguments: argparse.Namespace) -> None:
  """Tells license and size, downloads, writes, and says what to do with it."""
  if arguments.name is None:
    CONSOLE.print(_table())
    return
  dataset = find_dataset(arguments.name)
  out = (arguments.out or pathlib.Path(arguments.name)).expanduser()
  lines = [
    dataset.title,
    f"from    {dataset.url} ({dataset.megabytes:,} MB)",
    f"license {dataset.license}",
    f"cite    {dataset.cite}",
    f"note    {dataset.note}" if dataset.note else "",
  ]
  ERRORS.print("\n".join(filter(None, lines)), highlight=False, soft_wrap=True)
  get_dataset(arguments.name, out)
  CONSOLE.print(
    f"written to {out}; the archive is kept as {archive_place(arguments.name)}\n"
    f"  jseg check-data {out}\n"
    f"  jseg train --config={dataset.recipe} --config.data.root={out}",
    highlight=False,
    soft_wrap=True,
  )


def _table() -> Table:
  table = Table("name", "what", "MB", "license")
  for name in DATASETS:
    dataset = find_dataset(name)
    table.add_row(name, dataset.title, f"{dataset.megabytes:,}", dataset.license)
  return table
