"""Parameters of a CRF as text: what the command line and a run's `crf.json` hold."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jseg.crf.inference import CrfParams, check_settings
from jseg.types import InputError

FILE = "crf.json"


def make_params(values: Mapping[str, Any], base: CrfParams | None = None) -> CrfParams:
  """Parameters from plain values: numbers, lists (one number a class, axis or channel), names.

  Args:
    values: by name of a field of `CrfParams`.
    base: holds whatever isn't named; the defaults if None.

  Raises:
    InputError: there is no such field, or its value is of another kind.
  """
  base = CrfParams() if base is None else base
  fields = [field.name for field in dataclasses.fields(CrfParams)]
  for name, value in values.items():
    if name not in fields:
      raise InputError(f"CRF: there is no parameter {name!r}; choose from {', '.join(fields)}")
    default = getattr(CrfParams(), name)
    if isinstance(default, str):
      fits, kind = isinstance(value, str), "a name"
    elif isinstance(default, int) or name == "capacity":
      fits, kind = type(value) is int or value is default, "a whole number"
    else:
      fits, kind = _numeric(value) or value is default, "a number or a list of numbers"
    if not fits:
      raise InputError(f"CRF: {name} {value!r} must be {kind}, such as {default!r}")
    if name.endswith(("sigma", "sigma_xy", "sigma_rgb")) and not np.all(np.asarray(value) > 0):
      raise InputError(f"CRF: {name} {value} must be above 0; a weight of 0 switches a kernel off")
  params = dataclasses.replace(base, **values)
  check_settings(params)
  return params


def _numeric(value: Any) -> bool:
  if isinstance(value, list | tuple):
    return bool(value) and all(_numeric(v) for v in value)
  return isinstance(value, int | float) and not isinstance(value, bool)


def parse_params(text: str, base: CrfParams | None = None) -> CrfParams:
  """Parameters from "KEY=VALUE,KEY=VALUE", or from the JSON file of that name.

  Raises:
    InputError: it is neither, or `make_params` refuses it.
  """
  if "=" not in text:
    return make_params(_read(pathlib.Path(text)), base)
  values: dict[str, Any] = {}
  for part in text.split(","):
    name, equals, value = (word.strip() for word in part.partition("="))
    if not equals or not value:
      raise InputError(
        f"CRF: {part!r} is not KEY=VALUE; write --crf-params bilateral_weight=4,iterations=5, "
        "or put lists into a JSON file and name that"
      )
    try:
      values[name] = json.loads(value)
    except json.JSONDecodeError:
      values[name] = value
  return make_params(values, base)


def run_params(run: str | pathlib.Path) -> CrfParams:
  """The parameters that were tuned for a run (`jseg tune-crf`); the defaults if none were."""
  path = pathlib.Path(run) / FILE
  return make_params(_read(path)) if path.is_file() else CrfParams()


def to_dict(params: CrfParams) -> dict[str, Any]:
  """Plain values for JSON, those that `make_params` takes."""
  return dataclasses.asdict(params)


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    values = json.loads(path.read_text())
  except OSError as error:
    raise InputError(
      f"CRF: {path} can't be read ({error.strerror}); give KEY=VALUE,... or a JSON file"
    ) from None
  except ValueError as error:
    raise InputError(f"CRF: {path} is not valid JSON ({error})") from None
  if not isinstance(values, dict):
    raise InputError(f'CRF: {path} must hold an object, such as {{"bilateral_weight": 4}}')
  return values.get("params", values)
