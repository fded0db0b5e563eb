"""`jseg train`: trains, and goes on where the last checkpoint ends."""

import argparse
import logging
import pathlib

from jseg import recipes
from jseg.commands import common
from jseg.loop import train
from jseg.profile import STEPS

HELP = "train a network; the same command again goes on where the last checkpoint ends"
EXAMPLES = """\
  jseg train
  jseg train --config=folder --config.data.root=my_data --workdir=runs/mine
  jseg train --config=paper/fcn:fcn16s --config.data.root=VOCdevkit --workdir=runs/fcn16s
  jseg train --config=my_recipe.py --config.optim.lr=0.1 --workdir=runs/lr_0.1
  jseg train --config=camvid --config.data.root=camvid --workdir=runs/camvid --profile

On several hosts, start the same command on each; see docs/several_hosts.md:
  jseg train --config=... --workdir=SHARED/runs/a --distributed
  jseg train ... --coordinator=10.0.0.1:8476 --num-processes=2 --process-id=0"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  common.add_config(parser)
  parser.add_argument(
    "--workdir",
    type=pathlib.Path,
    help="the run directory (default: runs/RECIPE)",
  )
  parser.add_argument(
    "--profile",
    type=int,
    nargs="?",
    const=STEPS,
    default=0,
    metavar="STEPS",
    help="write a trace of so many steps, soon after the first, to WORKDIR/profile, and say how to "
    f"open it ({STEPS} unless told otherwise)",
  )
  common.add_hosts(parser)


def run(arguments: argparse.Namespace) -> None:
  """Trains."""
  logging.getLogger("absl").setLevel(logging.ERROR)  # what we have to say is printed
  workdir = arguments.workdir or default_workdir(arguments.config)
  several = common.join_hosts(arguments, workdir)  # before anything looks for devices
  config = common.read_config(arguments)
  if not several:
    common.use_cpu_cores(config.data.batch_size)
  train(config, workdir, profile=arguments.profile)


def default_workdir(recipe: str) -> pathlib.Path:
  """Returns where a recipe or file is trained unless told otherwise, each in a place of its own.

  Args:
    recipe: what --config names: "paper/fcn:fcn16s" is trained in runs/paper_fcn_fcn16s.
  """
  path, variant = recipes.find(recipe)
  name = next((name for name, file in recipes.files().items() if file == path), path.stem)
  return pathlib.Path("runs", "_".join(filter(None, (*name.split("/"), variant))))
