"""Draws the pictures of the documentation from the library's own code.

  python docs/figures.py               # all of them
  python docs/figures.py checkerboard  # docs/checkerboard.png; and patches
  python docs/figures.py unet          # docs/networks/unet.svg; and the other networks

A new picture is a function that returns a figure, and a line in the table FIGURES; a network's is
an entry of `network_figures.DRAWINGS`.
"""

import argparse
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from network_figures import DRAWINGS, draw

from jseg import models
from jseg.nn import conv_transpose

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "jseg"})

HERE = pathlib.Path(__file__).parent


def checkerboard() -> Figure:
  """What transposed convolutions of stride 2 make of a constant map, with constant kernels."""
  shown = slice(8, 16)  # away from the borders
  titles = {3: "kernel 3: a checkerboard", 4: "kernel 4: even", 2: "kernel 2: even, no overlap"}
  figure, axes = plt.subplots(1, len(titles), figsize=(8, 3.1), layout="constrained")
  for axis, (k, title) in zip(axes, titles.items(), strict=True):
    sums = conv_transpose(jnp.ones((1, 12, 12, 1)), jnp.ones((k, k, 1, 1)), strides=2)
    taps = np.asarray(sums)[0, shown, shown, 0]
    axis.imshow(taps, cmap="Blues", vmin=0, vmax=6)
    for (i, j), n in np.ndenumerate(taps):
      axis.text(j, i, f"{n:.0f}", ha="center", va="center", fontsize=9)
    axis.set_title(title, fontsize=11)
    axis.set_axis_off()
  figure.supxlabel("kernel taps that reach each output pixel, stride 2", fontsize=10)
  return figure


def patches() -> Figure:
  """Seconds for an image: the patch classifier slid over it, and its convolutional form."""
  model = models.create("patch_classifier", 2)
  edge, batch = model.patch, 64
  variables: Any = model.init(jax.random.key(0), jnp.zeros((1, edge, edge, 1)))
  apply: Any = model.apply
  slide = jax.jit(lambda x: apply(variables, x, train=True).logits)
  dense = jax.jit(lambda x: apply(variables, x).logits)

  def by_patches(image: jax.Array) -> np.ndarray:
    height, width = image.shape[1:3]
    padded = np.pad(image, [(0, 0), *[(edge // 2, edge // 2)] * 2, (0, 0)], mode="reflect")[0]
    every = [padded[y : y + edge, x : x + edge] for y in range(height) for x in range(width)]
    return np.concatenate(
      [slide(np.stack(every[i : i + batch])) for i in range(0, len(every), batch)]
    )

  sizes = [8, 16, 32, 64]
  runs: dict[str, Callable] = {"slid, patch by patch": by_patches, "convolutional": dense}
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for size in sizes:
    image = jax.random.normal(jax.random.key(1), (1, size, size, 1))
    results = {}
    for name, run in runs.items():
      results[name] = np.asarray(run(image)).reshape(size, size, 2)  # compiles, too
      started = time.perf_counter()
      np.asarray(run(image))
      seconds[name].append(time.perf_counter() - started)
    one, other = results.values()
    np.testing.assert_allclose(one, other, atol=1e-4)
  figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
  for name, values in seconds.items():
    axes.loglog(sizes, values, "o-", label=name)
    axes.annotate(f" {values[-1]:.2g} s", (sizes[-1], values[-1]), va="center")
  axes.set_xticks(sizes, [f"{n} x {n}" for n in sizes])
  axes.minorticks_off()
  axes.set_xlim(right=1.5 * sizes[-1])
  axes.set(xlabel="image", ylabel="seconds, two CPU cores", title="The same answer at every pixel")
  axes.legend()
  return figure


FIGURES: dict[str, Callable[[], Figure]] = {
  "checkerboard": checkerboard,
  "patches": patches,
  **{name: functools.partial(draw, drawing) for name, drawing in DRAWINGS.items()},
}


def main() -> None:
  """Draws the named figures, or all."""
  parser = argparse.ArgumentParser(description="Draws the documentation's pictures.")
  parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
  names = parser.parse_args().names or FIGURES
  if unknown := set(names) - set(FIGURES):
    parser.error(f"no figure {', '.join(sorted(unknown))}; choose from {', '.join(FIGURES)}")
  for name in names:
    path = HERE / (f"networks/{name}.svg" if name in DRAWINGS else f"{name}.png")
    # Without a date and with text as text, drawing again changes nothing, and files stay small.
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    FIGURES[name]().savefig(path, dpi=100, bbox_inches="tight", metadata=metadata)
    print(path)


if __name__ == "__main__":
  main()
