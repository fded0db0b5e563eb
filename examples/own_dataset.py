"""Your own data set and your own augmentation, where files and folders don't fit.

  python examples/own_dataset.py --steps=200 --workdir=runs/own_dataset

An item has a name and loads an example; a source lists them by split. It is prepared once, under
its fingerprint, and then read, shuffled and resumed as any other set. In a module of yours it can
also be named in a configuration: `config.data.name = "my_package.cells:make_source"`.
"""

import argparse
import dataclasses
import pathlib

import numpy as np

import jseg
from jseg.data import ClassInfo, Example, ListedSource


@dataclasses.dataclass(frozen=True)
class Stripes:
  """Stripes (class 1) of a random width on a darker ground (class 0), with noise."""

  index: int
  size: int = 64

  @property
  def name(self) -> str:
    """The example's name, unique in its split."""
    return f"stripes_{self.index:04d}"

  def load(self) -> Example:
    """Draws the example; one of files would read and check them here."""
    rng = np.random.default_rng(self.index)
    angle, width = rng.uniform(0, np.pi), rng.uniform(6, 16)
    rows, columns = np.mgrid[: self.size, : self.size]
    label = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * 2 * np.pi / width) > 0
    image = 90 + 60 * label[..., None] + rng.normal(0, 25, (self.size, self.size, 3))
    return Example.from_arrays(image.clip(0, 255).astype(np.uint8), label.astype(np.uint8))


def make_source(train: int = 200, val: int = 20) -> ListedSource:
  """Returns the source: its arguments are what `config.data.options` may hold."""
  return ListedSource(
    classes=ClassInfo(("ground", "stripe")),
    splits={
      "train": [Stripes(i) for i in range(train)],
      "val": [Stripes(100_000 + i) for i in range(val)],
    },
    make_fingerprint=lambda: f"stripes, version 1, {train} and {val}",
  )


def main() -> None:
  """Trains a small U-Net on it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/own_dataset"))
  arguments = parser.parse_args()

  config = jseg.config.default("unet", widths=(8, 16, 32))
  config.steps = arguments.steps
  config.eval_every = config.checkpoint_every = arguments.steps
  config.data.size = (64, 64)
  config.augment.scale = (0.8, 1.25)
  config.optim.lr = 0.05
  dataset = jseg.data.load(make_source())
  print(dataset.splits, dataset.classes.names)
  scores = jseg.train(config, arguments.workdir, dataset=dataset)
  print(f"validation mIoU {scores.primary:.3f}")


if __name__ == "__main__":
  main()
