"""The exact CRF kernel: pairs of blocks that are skipped, its error, and its time.

  python benchmarks/crf_exact.py FOLDER                # of FOLDER/images: shares and errors
  python benchmarks/crf_exact.py FOLDER --rows=200     # errors of some rows at full size
  python benchmarks/crf_exact.py FOLDER --seconds=67,3 [--gradient]  # of one product

`benchmarks/tpu.py --crf` says what it costs on a TPU.
"""

import pathlib
import resource
import time
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jseg.crf.blocks import Blocks, make_blocks
from jseg.crf.embedding import colors, positions
from jseg.crf.exact import exact_filter
from jseg.data import read_image
from jseg.types import Array

_SIZE = flags.DEFINE_list("size", ["375", "500"], "height and width of the images")
_CROP = flags.DEFINE_integer("crop", 64, "height and width of the crops that errors are taken of")
_IMAGES = flags.DEFINE_integer("images", 3, "number of images")
_ROWS = flags.DEFINE_integer("rows", 0, "number of rows whose errors are taken at full size")
_SECONDS = flags.DEFINE_list("seconds", [], "bandwidths that a product is timed at")
_GRADIENT = flags.DEFINE_bool("gradient", False, "time the derivatives instead")

_BLOCKS = 20  # that the rows are of
BANDWIDTHS = ((80.0, 13.0), (49.0, 5.0), (67.0, 3.0))
TOLERANCES = (0.0, 1e-5, 1e-3)
CLASSES = 21


def features(image: np.ndarray, xy: float, rgb: float) -> Array:
  """Features [n 5] of an image's pixels."""
  place = positions(image.shape[:2], jnp.float32(xy))
  return jnp.concatenate([place, colors(jnp.asarray(image, jnp.float32), jnp.float32(rgb))], 1)


def photo(path: pathlib.Path) -> np.ndarray:
  """Reads an image at the size of the flag."""
  h, w = map(int, _SIZE.value)
  return cv2.resize(read_image(path), (w, h), interpolation=cv2.INTER_AREA)


def skipped(paths: list[pathlib.Path]) -> None:
  """Prints the share of pairs of blocks of points that are skipped."""
  h, w = map(int, _SIZE.value)
  images = [photo(p) for p in paths]
  make = jax.jit(make_blocks, static_argnums=2)
  for xy, rgb in BANDWIDTHS:
    for tolerance in TOLERANCES:
      shares = []
      for image in images:
        blocks = make(features(image, xy, rgb), jnp.ones(h * w), tolerance)
        size = blocks.used.reshape(len(blocks.keep), -1).sum(1).astype(float)
        shares.append(1 - float(size @ blocks.keep @ size) / (h * w) ** 2)
      text = " ".join(f"{100 * x:.1f}" for x in shares)
      print(f"({xy:g}, {rgb:g}) tolerance {tolerance:g}: skipped {text} %", flush=True)


def error(paths: list[pathlib.Path]) -> None:
  """Prints the largest relative error of row sums, against float64, and of the mean of values."""
  n = _CROP.value
  for xy, rgb in BANDWIDTHS:
    for tolerance in TOLERANCES:
      worst, left_out = 0.0, 0.0
      for path in paths:
        points = features(read_image(path)[:n, :n], xy, rgb)
        exact = np.asarray(points, np.float64)
        squares = sum((a[:, None] - a[None]) ** 2 for a in exact.T)
        matrix = np.exp(-0.5 * squares)
        x = np.random.default_rng(0).random((len(exact), CLASSES))
        both = np.concatenate([x, np.ones((len(exact), 1))], 1)
        blocks = make_blocks(points, jnp.ones(len(points)), tolerance)
        found = exact_filter(jnp.asarray(both, jnp.float32), points, blocks)
        sums = matrix.sum(1, keepdims=True)
        worst = max(worst, float(abs((found - matrix @ both) / sums).max()))
        left_out = max(left_out, 1 - float(blocks.keep.mean()))
      print(f"({xy:g}, {rgb:g}) tolerance {tolerance:g}: error {worst:.1e}, skipped {left_out:.2f}")


def of_rows(path: pathlib.Path) -> None:
  """Prints errors of random rows of the product at full size, against float64.

  Rows are those of a few random blocks, as no other block's are computed.
  """
  rng = np.random.default_rng(0)
  image = photo(path)
  x = rng.random((image.shape[0] * image.shape[1], CLASSES))
  make, filtered = jax.jit(make_blocks, static_argnums=2), jax.jit(exact_filter)
  for xy, rgb in BANDWIDTHS:
    points = features(image, xy, rgb)
    for tolerance in TOLERANCES:
      blocks = make(points, jnp.ones(len(points)), tolerance)
      keep = np.asarray(blocks.keep)
      size = len(blocks.used) // len(keep)
      chosen = rng.choice(len(keep), min(_BLOCKS, len(keep)), replace=False)
      few = blocks._replace(keep=jnp.asarray(keep & np.isin(np.arange(len(keep)), chosen)[:, None]))
      found = np.asarray(filtered(jnp.asarray(x, jnp.float32), points, few), np.float64)
      block = np.asarray(blocks.place) // size
      rows = rng.choice(np.flatnonzero(np.isin(block, chosen)), _ROWS.value, replace=False)
      worst = np.zeros(2)
      for row in rows:
        exact = np.asarray(points, np.float64)
        kernel = np.exp(-0.5 * np.square(exact - exact[row]).sum(1))
        error = abs(found[row] - kernel @ x).max()
        left_out = kernel[~keep[block[row]][block]].sum()
        worst = np.maximum(worst, np.array([error, left_out]) / kernel.sum())
      print(
        f"({xy:g}, {rgb:g}) tolerance {tolerance:g}: error {worst[0]:.1e}, left out {worst[1]:.1e}",
        flush=True,
      )


def seconds(path: pathlib.Path) -> None:
  """Prints what one product with the values of all classes takes, or its derivatives."""
  xy, rgb = map(float, _SECONDS.value)
  points = features(photo(path), xy, rgb)
  x = jnp.ones((len(points), CLASSES))
  blocks = jax.jit(make_blocks, static_argnums=2)(points, jnp.ones(len(points)), 1e-5)

  def derivatives(x: Array, points: Array, blocks: Blocks) -> tuple[Array, Array]:
    return jax.grad(lambda *a: exact_filter(*a, blocks).sum(), (0, 1))(x, points)

  f: Callable[..., Any] = derivatives if _GRADIENT.value else exact_filter
  compiled = jax.jit(f).lower(x, points, blocks).compile()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  start, busy = time.perf_counter(), time.process_time()
  jax.block_until_ready(compiled(x, points, blocks))
  busy, wall = time.process_time() - busy, time.perf_counter() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(
    f"({xy:g}, {rgb:g}){' derivatives' * _GRADIENT.value}: {wall:.1f} s, {busy:.1f} s of all "
    f"cores, {float(blocks.keep.mean()):.3f} of the blocks, peak {peak:.2f} GiB, before "
    f"{before:.2f} GiB",
    flush=True,
  )


def main(argv: list[str]) -> None:
  """Runs what the flags select."""
  paths = sorted((pathlib.Path(argv[1]) / "images").iterdir())[: _IMAGES.value]
  if _ROWS.value:
    of_rows(paths[0])
  elif _SECONDS.value:
    seconds(paths[0])
  else:
    skipped(paths)
    error(paths)


if __name__ == "__main__":
  app.run(main)
