"""Sizes of U-Nets: two 3x3 convolutions per level, halved and doubled `depth` times."""

from collections.abc import Sequence

import jax.numpy as jnp

from jseg.nn.resize import pad_to_multiple
from jseg.types import Array, InputError


def center_crop(x: Array, size: Sequence[int]) -> Array:
  """The middle part of x [b h w ...], with `size` for the dimensions after the first."""
  for axis, (n, m) in enumerate(zip(x.shape[1:], size, strict=False), 1):
    first = (n - m) // 2
    x = x[(slice(None),) * axis + (slice(first, first + m),)]
  return x


def unpadded_output(n: int, depth: int) -> int:
  """Output length of the unpadded network for n pixels; 0 if n does not fit."""
  for _ in range(depth):
    n -= 4
    if n <= 0 or n % 2:
      return 0
    n //= 2
  for level in range(depth + 1):
    n = n - 4 if level == 0 else 2 * n - 4
    if n <= 0:
      return 0
  return n


def unpadded_labels(label: Array, depth: int) -> Array:
  """The part of labels [b h w] or [b d h w] that unpadded logits are compared with: the middle."""
  return center_crop(label, [unpadded_output(n, depth) for n in label.shape[1:]])


def check_padding(padding: str) -> None:
  """Raises InputError if `padding` is neither "SAME" nor "VALID"."""
  if padding not in ("SAME", "VALID"):
    raise InputError(f"padding: {padding!r} is unknown; choose SAME or VALID")


def fit_unet(x: Array, depth: int, padding: str, *, train: bool) -> Array:
  """Brings [b h w c] to a size that halves evenly, so that the output's first pixels are x's.

  Args:
    x: image, or volume [b d h w c].
    depth: number of times that maps are halved.
    padding: "SAME": zeros below and to the right. "VALID": x is surrounded by its mirror image
      until the output covers it; but in training it stays, and the output is its middle.
    train: whether in training.

  Raises:
    InputError: in training, a size does not fit "VALID".
  """
  size = x.shape[1:-1]
  if padding == "SAME":
    return pad_to_multiple(x, 2**depth)
  if train:
    check_unpadded_size(size, depth)
    return x
  edges = []
  for n in size:
    total = next(m for m in range(n, n + 64 * 2**depth) if unpadded_output(m, depth) >= n)
    before = (total - unpadded_output(total, depth)) // 2
    edges.append((before, total - n - before))
  return jnp.pad(x, [(0, 0), *edges, (0, 0)], mode="reflect")


def check_unpadded_size(size: Sequence[int], depth: int) -> None:
  """Raises InputError if a size (d,) h, w does not halve evenly at each of `depth` levels."""
  for name, n in zip(("depth", "height", "width")[-len(size) :], size, strict=True):
    if unpadded_output(n, depth):
      continue
    below = next((m for m in range(n - 1, 0, -1) if unpadded_output(m, depth)), None)
    above = next(m for m in range(n + 1, n + 64 * 2**depth) if unpadded_output(m, depth))
    nearest = f"{above}" if below is None else f"{below} or {above}"
    raise InputError(
      f"{name} {n} does not fit padding VALID, where maps must halve evenly at each of {depth} "
      f"levels; train on crops of {nearest} (augment.crop), or with padding SAME"
    )
