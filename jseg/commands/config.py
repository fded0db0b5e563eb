"""`jseg config`: explains every key of a configuration."""

import argparse
import difflib
import itertools
import pathlib

from ml_collections import ConfigDict
from rich import box
from rich.table import Table
from rich.text import Text

from jseg import config as configs
from jseg import models, recipes
from jseg.config_help import Key, describe
from jseg.console import CONSOLE
from jseg.types import InputError

HELP = "explain every key of a network's or a recipe's configuration"
EXAMPLES = """\
  jseg config unet
  jseg config paper/fcn:fcn16s
  jseg config my_recipe.py
  jseg config mask_rcnn | grep anchor"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds NAME."""
  parser.add_argument(
    "name",
    metavar="NAME",
    help="a network (`jseg models`), a recipe (`jseg configs`), or a Python file with get_config()",
  )


def run(arguments: argparse.Namespace) -> None:
  """Prints the keys: as tables on a terminal, else a line for each."""
  keys = describe(read(arguments.name))
  if not CONSOLE.is_terminal:
    for key in keys:
      CONSOLE.print(line(key), highlight=False, soft_wrap=True)
    return
  for section, group in itertools.groupby(keys, lambda key: key.section):
    CONSOLE.print(table(section, list(group)))
  CONSOLE.print("bold: not the network's default. Change any key with --config.KEY=VALUE")


def read(name: str) -> ConfigDict:
  """Returns the configuration of a network, recipe or file.

  Raises:
    InputError: there is none of that name.
  """
  if name in models.names():
    return configs.default(name)
  module, colon, _ = name.partition(":")
  if colon and module not in recipes.files() and not pathlib.Path(module).is_file():
    return configs.default(name)  # "package.module:Name"
  if close := difflib.get_close_matches(name, models.names(), n=2):
    recipe = name in recipes.files() or pathlib.Path(name).expanduser().is_file()
    if not recipe:
      raise InputError(
        f"there is no network or recipe {name!r}; did you mean {' or '.join(close)}?"
      )
  return recipes.read(name)


def line(key: Key) -> str:
  """Returns a key as one line of text, which begins with what --config. takes."""
  default = "" if key.value == key.default else f"; default {_text(key.default)}"
  return f"{key.name}={_text(key.value)}  # {key.meaning} ({_may_be(key)}{default})"


def table(section: str, keys: list[Key]) -> Table:
  """Returns the keys of a section as a table."""
  result = Table(
    title=section or "run",
    title_justify="left",
    title_style="bold",
    box=box.SIMPLE_HEAD,
    pad_edge=False,
    expand=True,
  )
  result.add_column("key", no_wrap=True)
  result.add_column("value", ratio=2, overflow="fold")
  result.add_column("meaning", ratio=5)
  for key in keys:
    value = Text(_text(key.value))
    if key.value != key.default:
      value.stylize("bold")
    result.add_row(key.name, value, Text.assemble(key.meaning, " ", (f"({_may_be(key)})", "dim")))
  return result


def _text(value: object) -> str:
  return (value or '""') if isinstance(value, str) else str(value)


def _may_be(key: Key) -> str:
  return ", ".join(each or '""' for each in key.choices) or key.kind
