"""Names that stand for code: ours from a table, a user's own as "package.module:Name"."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from jseg.types import InputError

Base = TypeVar("Base")


def lookup(kind: str, name: str, table: Mapping[str, object]) -> Any:
  """Returns what a name stands for.

  Args:
    kind: what is looked up, for messages: "network", "loss", ...
    name: a key of `table`, or "package.module:Name" of the user's own code.
    table: objects by name; a string "module:Name" is imported when it is asked for.

  Raises:
    InputError: there is no such name, module or attribute.
  """
  if not isinstance(name, str):
    raise InputError(f"{kind}: {name!r} must be a name")
  if name in table:
    found = table[name]
    return _import(kind, found) if isinstance(found, str) else found
  if ":" in name:
    return _import(kind, name)
  close = difflib.get_close_matches(name, table, n=1)
  hint = f"did you mean {close[0]}? There are" if close else "choose from"
  raise InputError(
    f"{kind} {name!r} is unknown; {hint} {', '.join(table)}, or name your own as "
    "package.module:Name"
  )


def lookup_class(kind: str, name: str, table: Mapping[str, object], base: type[Base]) -> type[Base]:
  """Returns the class that a name stands for.

  Args:
    kind: kind of thing, as for `lookup`.
    name: name, as for `lookup`.
    table: classes by name, as for `lookup`.
    base: class of which it must be a subclass.

  Raises:
    InputError: there is no such name, module or attribute, or it is something else.
  """
  found = lookup(kind, name, table)
  if not (isinstance(found, type) and issubclass(found, base)):
    rule = f"a subclass of {base.__module__}.{base.__qualname__}"
    raise InputError(f"{kind} {name!r} is {found!r}; it must be {rule}")
  return found


def _import(kind: str, path: str) -> Any:
  module, _, attribute = path.partition(":")
  try:
    found: Any = importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name is None or not module.startswith(error.name):
      raise  # the module is there, and what it imports isn't
    raise InputError(
      f"{kind} {path!r}: there is no module {module}; install it, or start where Python finds it "
      "(PYTHONPATH)"
    ) from None
  for part in attribute.split("."):
    if not hasattr(found, part):
      raise InputError(f"{kind} {path!r}: {module} has no {attribute}")
    found = getattr(found, part)
  return found
