"""References of tests/golden, and the weights they were made with; see its README."""

import functools
import json
import pathlib
import re

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from golden import formula

FOLDER = pathlib.Path(__file__).parents[1] / "golden"


@functools.cache
def read(name):
  """The reference's results as they are, and `meta`."""
  with np.load(FOLDER / f"{name}.npz") as file:
    return {k: file[k] for k in file.files if k != "meta"}, json.loads(str(file["meta"]))


def load(name):
  """The reference's results, channels last, and `meta`."""
  results, meta = read(name)
  return {key: np.moveaxis(value, 1, -1) for key, value in results.items()}, meta


def weights(meta, pattern=""):
  """The reference's tensors whose names match, without those that are 0 and that we don't have."""
  tensors = {
    name: formula.weight(name, tuple(shape))
    for name, shape in meta["state_dict"]
    if name not in meta.get("zero", ()) and re.match(pattern, name)
  }
  for found_in, factor in meta.get("scale", {}).items():
    for name in filter(re.compile(found_in).search, tensors):
      tensors[name] *= np.float32(factor)
  return tensors


def check(model, variables, x, **options):
  """The variables are the network's, none missing or over."""
  expected = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, **options), x)
  expected, given = (
    {name: a.shape for name, a in flatten_dict(tree, sep="/").items() if name != "batch_stats"}
    for tree in (expected, {k: v for k, v in variables.items() if v})
  )
  assert given == expected
