"""Damages bytes at random, again and again in the same way."""

import copy
import os

import numpy as np

ROUNDS = int(os.environ.get("JSEG_FUZZ", "300"))
"""Damaged files of each kind; JSEG_FUZZ=10000 looks closer."""


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
  """Changes, doubles, moves or drops some bytes."""
  data = bytearray(data)
  for _ in range(rng.integers(1, 5)):
    start = int(rng.integers(len(data) + 1))
    length = int(min(rng.geometric(0.1), 200))
    match rng.integers(6):
      case 0:
        data[start : start + 1] = bytes([rng.integers(256)])
      case 1:
        data[start : start + length] = rng.bytes(length)
      case 2:
        del data[start : start + length]
      case 3:
        data[start:start] = data[start : start + length]
      case 4:
        other = int(rng.integers(len(data) + 1))
        data[start:start] = data[other : other + length]
      case 5:
        number = (0, 2**31, 2**40, 2**63, 2**64 - 1)[rng.integers(5)]
        data[start : start + 8] = number.to_bytes(8, "little")
  return bytes(data)


ODD = (
  None,
  True,
  -1,
  0,
  10**400,
  0.5,
  float("nan"),
  "",
  "\x1b[31m",
  "a\nb",
  [],
  {},
  [[]],
  {"": []},
)
"""Values that nobody expects in JSON."""


def odd_json(value, rng):
  """A copy of a JSON value in which one to three places hold something else, or are gone."""
  value = copy.deepcopy(value)
  for _ in range(rng.integers(1, 4)):
    parents = list(_containers(value))
    parent = parents[rng.integers(len(parents))] if parents else None
    odd = copy.deepcopy(ODD[rng.integers(len(ODD))])
    if not parent or rng.random() < 0.02:
      return odd
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    key = keys[rng.integers(len(keys))]
    if rng.random() < 0.2:
      del parent[key]
    else:
      parent[key] = odd
  return value


def _containers(value):
  if isinstance(value, dict | list) and value:
    yield value
    for each in value.values() if isinstance(value, dict) else value:
      yield from _containers(each)
