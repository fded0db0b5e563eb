"""`jseg models`: lists the networks."""

import argparse

from rich.table import Table

from jseg import models
from jseg.console import CONSOLE

HELP = "list the networks"
EXAMPLES = "  jseg models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds nothing."""


def run(arguments: argparse.Namespace) -> None:
  """Prints names, parameters and arguments."""
  del arguments
  table = Table("network", "parameters", "arguments")
  for name in models.names():
    values = ", ".join(f"{k}={v}" for k, v in models.arguments(name).items())
    table.add_row(name, f"{models.count_parameters(name, 21):,}", values)
  CONSOLE.print(table)
  CONSOLE.print("parameters: for 21 classes and RGB images")
