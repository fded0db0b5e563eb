"""Puts weights into a network whose parameters may differ in part."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import jax
import numpy as np

from jseg.parameters import parameter_name
from jseg.types import Array, InputError, Variables
from jseg.weights.channels import adapt_kernel


@dataclasses.dataclass(frozen=True)
class Transfer:
  """Report of what became of every parameter; names are paths with "/" between.

  Attributes:
    taken: parameters and statistics that have new values.
    kept: parameters that the source doesn't have; they stay as they were initialized.
    reshaped: parameters whose shape differs, with both shapes; they stay as well.
    unused: names in the source that the network doesn't have.
    adapted: kernels among `taken` that were made for images of other channels, and how.
  """

  taken: Sequence[str]
  kept: Sequence[str]
  reshaped: Sequence[str]
  unused: Sequence[str]
  adapted: Sequence[str] = ()

  def __str__(self) -> str:
    lines = [
      f"{len(self.taken)} tensors taken",
      _listed("of them made for other channels", self.adapted),
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
  variables: Variables,
  source: Variables,
  where: str | Path = "the source",
  read_image: Callable[[], Collection[str]] = tuple,
) -> tuple[Variables, Transfer]:
  """Replaces the parameters that have the same path and shape in the source.

  Args:
    variables: {"params", "batch_stats"} of the network; shapes and dtypes are enough where all are
      replaced.
    source: {"params", "batch_stats"} that were trained elsewhere.
    where: name of the source, for messages.
    read_image: returns the names of the kernels that read the image (`image_kernels`), which are
      made for other channels where only those differ; asked once, and only if a shape differs.

  Returns:
    (the new variables, report of what became of each).

  Raises:
    InputError: nothing fits.
  """
  given = _flat(source)
  taken, kept, reshaped, adapted = [], [], [], []
  reading = functools.cache(read_image)

  def replace(path: tuple[object, ...], old: Array) -> Array:
    name = parameter_name(path)
    new: Array | np.ndarray | None = given.pop(name, None)
    if new is None:
      kept.append(name)
      return old
    if _differs_in_inputs(np.shape(new), old.shape) and name in reading():
      before, after = np.shape(new)[-2], old.shape[-2]
      how = "summed up" if after == 1 else f"repeated and multiplied by {before}/{after}"
      adapted.append(f"{name} (its {before} channel(s) {how})")
      new = adapt_kernel(np.asarray(new), after)
    if np.shape(new) != old.shape:
      reshaped.append(f"{name} {tuple(np.shape(new))}, here {tuple(old.shape)}")
    else:
      taken.append(name)
      return jax.numpy.asarray(new, old.dtype)
    return old

  result = {
    collection: jax.tree_util.tree_map_with_path(replace, variables.get(collection, {}))
    for collection in ("params", "batch_stats")
  }
  report = Transfer(taken, kept, reshaped, sorted(given), adapted)
  if not taken:
    raise InputError(f"nothing in {where} fits this network: {report}")
  return result, report


def _differs_in_inputs(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
  """Whether two kernels [... c f] differ in c alone."""
  return (
    len(one) == len(other) > 2
    and one[-2] != other[-2]
    and (*one[:-2], one[-1]) == (*other[:-2], other[-1])
  )


def _flat(variables: Variables) -> dict[str, Array]:
  flat: dict[str, Array] = {}
  for collection in ("params", "batch_stats"):
    leaves = jax.tree_util.tree_leaves_with_path(variables.get(collection, {}))
    flat |= {parameter_name(path): leaf for path, leaf in leaves}
  return flat
