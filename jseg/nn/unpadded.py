"""Sizes in networks of unpadded 3x3 convolutions: two a level, `depth` times halved and doubled."""

from collections.abc import Sequence

import jax.numpy as jnp

from jseg.types import Array, InputError


def centre(x: Array, size: Sequence[int]) -> Array:
  """The middle of x, [b h w ...], of `size` in the dimensions after the first."""
  for axis, (n, m) in enumerate(zip(x.shape[1:], size, strict=False), 1):
    first = (n - m) // 2
    x = x[(slice(None),) * axis + (slice(first, first + m),)]
  return x


def unpadded_output(n: int, depth: int) -> int:
  """Length of the output for n pixels; 0 where n doesn't fit."""
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
  """What the output is compared with: the middle of [b h w] or [b d h w]."""
  return centre(label, [unpadded_output(n, depth) for n in label.shape[1:]])


def mirror_to_cover(x: Array, depth: int) -> Array:
  """Surrounds [b h w c] by its mirror image, so that the output's first pixels are those of x."""
  edges = []
  for n in x.shape[1:-1]:
    total = next(m for m in range(n, n + 64 * 2**depth) if unpadded_output(m, depth) >= n)
    before = (total - unpadded_output(total, depth)) // 2
    edges.append((before, total - n - before))
  return jnp.pad(x, [(0, 0), *edges, (0, 0)], mode="reflect")


def check_unpadded_size(size: Sequence[int], depth: int) -> None:
  """Raises InputError where a (d,) h, w does not halve evenly all the way down."""
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
