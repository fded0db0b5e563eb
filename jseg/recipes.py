"""Recipes: the configurations that come with the library, by name, and a user's own, by file.

They are the files of `configs/`, which lies beside the package in a clone and in it in a wheel.
"""

import dataclasses
import difflib
import inspect
import pathlib
import traceback
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jseg.config import About
from jseg.types import InputError

QUICKSTART = "quickstart"
"""The recipe that needs nothing."""


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A recipe of the library.

  Attributes:
    name: what `jseg train --config=` takes, such as "paper/fcn".
    summary: first line of the file's docstring.
    about: what each variant needs and reaches, by its name; "" where there are no variants.
  """

  name: str
  summary: str
  about: Mapping[str, About]


def folder() -> pathlib.Path:
  """Returns the folder that the recipes are in.

  Raises:
    InputError: it was left out when the library was copied.
  """
  package = pathlib.Path(__file__).parent
  for path in (package / "configs", package.parent / "configs"):
    if path.is_dir():
      return path
  raise InputError(f"{package} has no recipes; install the library as a whole")


def files() -> dict[str, pathlib.Path]:
  """Returns the file of each recipe by its name, the quickstart first and the papers' last."""
  root = folder()
  found = {path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.py")}
  return dict(sorted(found.items(), key=lambda x: ("/" in x[0], x[0] != QUICKSTART, x[0])))


def find(text: str) -> tuple[pathlib.Path, str | None]:
  """Returns the file and the variant that `--config=` names.

  Args:
    text: the name of a recipe or the path of a file, and a variant of it after a colon.

  Raises:
    InputError: there is no such recipe or file.
  """
  recipes = files()
  name, colon, variant = text.partition(":")
  chosen = variant if colon else None
  if name in recipes:
    return recipes[name], chosen
  whole, path = pathlib.Path(text).expanduser(), pathlib.Path(name).expanduser()
  if whole.is_file():
    return whole, None
  if path.is_file():
    return path, chosen
  if path.suffix == ".py":
    name, what = path.stem, f"there is no file {name}"
  else:
    what = f"there is no recipe {name!r}, and no such file"
  close = _closest(name, list(recipes))
  hint = f"did you mean --config={' or '.join(close)}?" if close else "`jseg configs` lists recipes"
  raise InputError(f"{what}; {hint}")


def _closest(name: str, known: list[str]) -> list[str]:
  """Returns the names that `name` may be a slip of, with or without their folder."""
  short = {each.rpartition("/")[2]: each for each in reversed(known)}
  if name in short:
    return [short[name]]
  close = difflib.get_close_matches(name, [*known, *short], n=3)
  return list(dict.fromkeys(short.get(each, each) for each in close))


def read(text: str) -> ConfigDict:
  """Returns the configuration of a recipe or a file.

  Args:
    text: as for `find`.

  Raises:
    InputError: there is no such recipe, file or variant, or its code fails.
  """
  path, variant = find(text)
  make = _run(path).get("get_config")
  if make is None:
    raise InputError(f"{path} has no function get_config; `jseg configs` lists recipes that have")
  if variant is not None and not inspect.signature(make).parameters:
    raise InputError(
      f"{path} has no variants, and so no {variant!r}; leave out what follows the colon"
    )
  try:
    return make() if variant is None else make(variant)
  except InputError:
    raise
  except Exception as error:
    raise InputError(_failure(path, error)) from error


def load(name: str) -> Recipe:
  """Returns what is known of a recipe of the library.

  Args:
    name: one of the names of `files()`.

  Raises:
    InputError: there is no such recipe, or it doesn't say what it needs.
  """
  path, _ = find(name)
  values = _run(path)
  about = values.get("ABOUT")
  if about is None:
    raise InputError(f"{path} has no ABOUT; say what it needs with jseg.config.About")
  summary = str(values["__doc__"]).strip().partition("\n")[0]
  return Recipe(name, summary, about if isinstance(about, Mapping) else {"": about})


def _run(path: pathlib.Path) -> dict[str, Any]:
  """Runs a file and returns what it defines."""
  try:
    source = path.read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"the config file can't be read: {error}") from None
  names: dict[str, Any] = {"__name__": "jseg_config", "__file__": str(path)}
  try:
    exec(compile(source, str(path), "exec"), names)
  except InputError:
    raise
  except Exception as error:
    raise InputError(_failure(path, error)) from error
  return names


def _failure(path: pathlib.Path, error: Exception) -> str:
  """What went wrong in a file, and where in it."""
  if isinstance(error, SyntaxError):
    return f"{path}, line {error.lineno}: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)
  line = next((f.lineno for f in reversed(frames) if f.filename == str(path)), None)
  return f"{path}, line {line}: {type(error).__name__}: {error}"
