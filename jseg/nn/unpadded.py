"""Sizes of U-Nets, two 3x3 convolutions a level, `depth` times halved and doubled."""

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


def check_padding(padding: str) -> None:
  """Raises InputError where a U-Net has no such padding."""
  if padding not in ("SAME", "VALID"):
    raise InputError(f"padding: {padding!r} is unknown; choose SAME or VALID")


def fit_unet(x: Array, depth: int, padding: str, *, train: bool) -> Array:
  """Brings [b h w c] to a size that halves evenly, so that the output's first pixels are x's.

  Args:
    x: the image, or a volume [b d h w c].
    depth: how often maps are halved.
    padding: "SAME": zeros below and to the right. "VALID": x is surrounded by its mirror image
      until the output covers it; but in training it stays, and its middle is what comes out.
    train: whether in training.

  Raises:
    InputError: a size doesn't fit "VALID" in training.
  """
  size = x.shape[1:-1]
  if padding == "SAME":
    return jnp.pad(x, [(0, 0), *((0, -n % 2**depth) for n in size), (0, 0)])
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
