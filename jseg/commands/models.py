"""`jseg models`: lists the networks."""

import argparse
import inspect
import sys

from rich.table import Table

from jseg import models
from jseg.console import CONSOLE

HELP = "list the networks"
EXAMPLES = "  jseg models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds nothing."""


def run(arguments: argparse.Namespace) -> None:
  """Prints names, what each is, and parameters."""
  del arguments
  table = Table("network", "what it is", "parameters")
  for name in models.names():
    table.add_row(name, summary(name), f"{models.count_parameters(name, 21):,}")
  CONSOLE.print(table)
  CONSOLE.print("parameters: of 21 classes and RGB images")
  CONSOLE.print("`jseg config NETWORK` explains the keys of each")


def summary(name: str) -> str:
  """Returns the first sentence of a network's module: its name and paper."""
  module = sys.modules[models.get(name).__module__]
  return " ".join(str(inspect.getdoc(module)).partition("\n\n")[0].split())
