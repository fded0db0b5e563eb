"""`jseg configs`: lists the recipes."""

import argparse

from rich import box
from rich.table import Table

from jseg import recipes
from jseg.config import About
from jseg.console import CONSOLE
from jseg.install import install_line

HELP = "list the recipes, what they need and what they reach"
EXAMPLES = """\
  jseg configs
  jseg configs | grep camvid"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds nothing."""


def run(arguments: argparse.Namespace) -> None:
  """Prints the recipes: as a table on a terminal, else a line for each variant."""
  del arguments
  found = [recipes.load(name) for name in recipes.files()]
  if CONSOLE.is_terminal:
    CONSOLE.print(table(found))
    CONSOLE.print(
      "minutes: on two CPU cores. Train one with `jseg train --config=RECIPE`, and see its keys "
      "with `jseg config RECIPE`"
    )
    return
  for recipe in found:
    for variant, about in recipe.about.items():
      CONSOLE.print(line(recipe, variant, about), highlight=False, soft_wrap=True)


def line(recipe: recipes.Recipe, variant: str, about: About) -> str:
  """Returns a variant of a recipe as one line of text."""
  name = f"{recipe.name}:{variant}" if variant else recipe.name
  unit = "minute" if about.minutes == 1 else "minutes"
  minutes = "" if about.minutes is None else f"{about.minutes} {unit} on two CPU cores: "
  return f"{name} | {recipe.summary} | needs {needs(about)} | {minutes}{reaches(about)}"


def table(found: list[recipes.Recipe]) -> Table:
  """Returns a table of recipes and their variants."""
  result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  result.add_column("recipe", no_wrap=True)
  result.add_column("what it trains, and what it needs", ratio=3)
  result.add_column("minutes", justify="right")
  result.add_column("reaches", ratio=2)
  for recipe in found:
    several = len(recipe.about) > 1
    if several:
      result.add_row(recipe.name, recipe.summary, "", "")
    for variant, about in recipe.about.items():
      name = f"  :{variant}" if several else recipe.name
      text = f"needs {needs(about)}"
      what = text if several else f"{recipe.summary}\n{text}"
      minutes = "" if about.minutes is None else str(about.minutes)
      result.add_row(name, what, minutes, reaches(about))
    result.add_row()
  return result


def needs(about: About) -> str:
  """Returns what must be there: data, weights, packages."""
  parts = [
    about.data,
    about.weights,
    *(f"packages: {install_line(extra)}" for extra in about.extras),
  ]
  return "; ".join(filter(None, parts)) or "nothing"


def reaches(about: About) -> str:
  """Returns what was measured, or what is published."""
  if about.published:
    how = f" (--protocol {about.protocol})" if about.protocol else ""
    return f"published, not run here: {about.published}{how}"
  return about.reaches or "not measured"
