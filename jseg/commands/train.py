"""`jseg train`: trains, and goes on where the last checkpoint ends."""

import argparse
import collections
import logging
import pathlib

from jseg import config as configs
from jseg import recipes
from jseg.commands.common import add_hosts, join_hosts, use_cpu_cores
from jseg.loop import train

HELP = "train a network; the same command again goes on where the last checkpoint ends"
EXAMPLES = """\
  jseg train
  jseg train --config=folder --config.data.root=my_data --workdir=runs/mine
  jseg train --config=paper/fcn:fcn16s --config.data.root=VOCdevkit --workdir=runs/fcn16s
  jseg train --config=my_recipe.py --config.optim.lr=0.1 --workdir=runs/lr_0.1

On several hosts, start the same command on each; see docs/several_hosts.md:
  jseg train --config=... --workdir=SHARED/runs/a --distributed
  jseg train ... --coordinator=10.0.0.1:8476 --num-processes=2 --process-id=0"""

_PREFIX = "--config."


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments; --config.KEY=VALUE is read by `split_overrides`."""
  parser.add_argument(
    "--config",
    metavar="RECIPE",
    default=recipes.QUICKSTART,
    help="a recipe's name (`jseg configs` lists them) or a Python file with get_config(); after "
    f"a colon its variant (default: %(default)s); {_PREFIX}KEY=VALUE changes one of its values "
    "(`jseg config RECIPE` lists them)",
  )
  parser.add_argument(
    "--workdir",
    type=pathlib.Path,
    help="the run directory (default: runs/RECIPE)",
  )
  add_hosts(parser)


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
  """Takes --config.KEY=VALUE, and --config.KEY VALUE, out of a command line.

  Returns:
    (other words, ["KEY=VALUE", ...]).
  """
  others: list[str] = []
  overrides: list[str] = []
  rest = collections.deque(argv)
  while rest:
    word = rest.popleft()
    if not word.startswith(_PREFIX):
      others.append(word)
      continue
    key, equals, value = word.removeprefix(_PREFIX).partition("=")
    if not equals and rest and not rest[0].startswith("--"):
      value = rest.popleft()
    overrides.append(f"{key}={value}")
  return others, overrides


def run(arguments: argparse.Namespace) -> None:
  """Trains."""
  logging.getLogger("absl").setLevel(logging.ERROR)  # what we have to say is printed
  workdir = arguments.workdir or default_workdir(arguments.config)
  several = join_hosts(arguments, workdir)  # before anything looks for devices
  config = recipes.read(arguments.config)
  changes = configs.parse_changes(arguments.overrides, _PREFIX, config)
  config = configs.change(config, changes)
  if not several:
    use_cpu_cores(config.data.batch_size)
  train(config, workdir)


def default_workdir(recipe: str) -> pathlib.Path:
  """Returns where a recipe or file is trained unless told otherwise, each in a place of its own.

  Args:
    recipe: what --config names: "paper/fcn:fcn16s" is trained in runs/paper_fcn_fcn16s.
  """
  path, variant = recipes.find(recipe)
  name = next((name for name, file in recipes.files().items() if file == path), path.stem)
  return pathlib.Path("runs", "_".join(filter(None, (*name.split("/"), variant))))
