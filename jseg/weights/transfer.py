"""Puts weights into a network whose parameters may differ in part."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jseg.parameters import parameter_name
from jseg.types import InputError


@dataclasses.dataclass(frozen=True)
class Transfer:
  """Report of what became of every parameter; names are paths with "/" between.

  Attributes:
    taken: parameters and statistics that have new values.
    kept: parameters that the source doesn't have; they stay as they were initialized.
    reshaped: parameters whose shape differs, with both shapes; they stay as well.
    unused: names in the source that the network doesn't have.
  """

  taken: Sequence[str]
  kept: Sequence[str]
  reshaped: Sequence[str]
  unused: Sequence[str]

  def __str__(self) -> str:
    lines = [
      f"{len(self.taken)} tensors taken",
      _listed("not in it, so newly initialized", self.kept),
      _listed("of another shape, so newly initialized", self.reshaped),
      _listed("in it but not in the network", self.unused),
    ]
    return "; ".join(filter(None, lines))

  def differences(self) -> str:
    """Lists what the source lacks or has in another shape."""
    lines = [_listed("missing", self.kept), _listed("of another shape", self.reshaped)]
    return "; ".join(filter(None, lines))


def _listed(what: str, names: Sequence[str]) -> str:
  more = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return f"{what}: {', '.join(names[:8])}{more}" if names else ""


def transfer(
  variables: Mapping[str, Any], source: Mapping[str, Any], where: str | Path = "the source"
) -> tuple[dict[str, Any], Transfer]:
  """Replaces the parameters that have the same path and shape in the source.

  Args:
    variables: {"params", "batch_stats"} of the network; shapes and dtypes are enough where all are
      replaced.
    source: {"params", "batch_stats"} that were trained elsewhere.
    where: name of the source, for messages.

  Returns:
    (the new variables, report of what became of each).

  Raises:
    InputError: nothing fits.
  """
  given = _flat(source)
  taken, kept, reshaped = [], [], []

  def replace(path: Any, old: Any) -> Any:
    name = parameter_name(path)
    new = given.pop(name, None)
    if new is None:
      kept.append(name)
    elif np.shape(new) != old.shape:
      reshaped.append(f"{name} {tuple(np.shape(new))}, here {tuple(old.shape)}")
    else:
      taken.append(name)
      return jax.numpy.asarray(new, old.dtype)
    return old

  result = {
    collection: jax.tree_util.tree_map_with_path(replace, variables.get(collection, {}))
    for collection in ("params", "batch_stats")
  }
  report = Transfer(taken, kept, reshaped, sorted(given))
  if not taken:
    raise InputError(f"nothing in {where} fits this network: {report}")
  return result, report


def _flat(variables: Mapping[str, Any]) -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for collection in ("params", "batch_stats"):
    leaves = jax.tree_util.tree_leaves_with_path(variables.get(collection, {}))
    flat |= {parameter_name(path): leaf for path, leaf in leaves}
  return flat
