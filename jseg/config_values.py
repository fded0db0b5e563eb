"""Small tools for sections of a configuration, which tasks and `jseg.config` share."""

import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from jseg.types import InputError

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def defaults_of(function: Callable[..., object], *without: str) -> dict[str, object]:
  """Returns a function's arguments and their defaults, those named in `without` aside."""
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p.default for p in parameters if p.name not in without}


def build(
  section: str, make: Callable[_Given, _Made], *args: _Given.args, **kwargs: _Given.kwargs
) -> _Made:
  """Calls `make`; an InputError that names an argument then names the section's key.

  Raises:
    InputError: as `make`, with `section.` before the message.
  """
  try:
    return make(*args, **kwargs)
  except InputError as error:
    raise InputError(f"{section}.{error}") from error


def at_least(values: Mapping[str, float], least: float) -> None:
  """Raises InputError for the first value, by key, that is below `least`."""
  for key, value in values.items():
    if not value >= least:
      raise InputError(f"{key}: {value} must be at least {least}")
