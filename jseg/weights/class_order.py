"""Brings the heads of a trained network into another order of classes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jseg.types import Array, Variables


def match_classes(source: Sequence[str], target: Sequence[str]) -> list[int]:
  """Which class of a trained network becomes which of a new one with as many.

  Args:
    source: names of the trained network's classes.
    target: names of the new network's classes, as many.

  Returns:
    For each new class the place of the trained one of its name; classes without one take those that
    are left, in their order.
  """
  left = iter([i for i, name in enumerate(source) if name not in target])
  return [source.index(name) if name in source else next(left) for name in target]


def reorder_classes(variables: Variables, wider: Variables, order: Sequence[int]) -> Variables:
  """Reorders every axis of parameters and statistics that runs over classes.

  Args:
    variables: {"params", "batch_stats"} of a network of k classes.
    wider: the same of this network with k + 1 classes, or shapes alone; an axis that is longer
      there runs over classes, or over classes and, within a class, over as many numbers.
    order: k places of classes; class i of the result is class order[i].
  """

  def reorder(leaf: Array, other: Array | jax.ShapeDtypeStruct) -> Array:
    for axis, (size, more) in enumerate(zip(leaf.shape, other.shape, strict=True)):
      if size != more:
        shape = (*leaf.shape[:axis], len(order), more - size, *leaf.shape[axis + 1 :])
        leaf = jnp.take(leaf.reshape(shape), jnp.array(order), axis).reshape(leaf.shape)
    return leaf

  return {key: jax.tree.map(reorder, tree, wider[key]) for key, tree in variables.items()}
