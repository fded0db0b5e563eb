"""`jseg export`: writes a network that runs without this library."""

import argparse
import pathlib

from jseg.commands import common
from jseg.console import CONSOLE
from jseg.export import export_run

HELP = "write a network with its weights as StableHLO, which runs without this library"
EXAMPLES = """\
  jseg export runs/mine
  jseg export runs/mine --size 480 640 --platforms cpu cuda"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  common.add_run(parser)
  parser.add_argument("--out", type=pathlib.Path, help="default: RUN/export/NETWORK.stablehlo")
  parser.add_argument(
    "--size", type=int, nargs="+", metavar="N", help="height and width; default: the run's"
  )
  parser.add_argument(
    "--platforms", nargs="+", default=["cpu", "cuda", "tpu"], help="default: cpu cuda tpu"
  )


def run(arguments: argparse.Namespace) -> None:
  """Exports and prints the paths."""
  paths = export_run(
    arguments.run_directory,
    arguments.out,
    checkpoint=arguments.checkpoint,
    size=arguments.size,
    platforms=arguments.platforms,
    changes=common.changes(arguments),
  )
  megabytes = paths[0].stat().st_size / 2**20
  CONSOLE.print(f"written to {paths[0]} ({megabytes:.1f} MiB); what it takes is in {paths[1].name}")
