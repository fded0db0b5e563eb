"""Seams of windows: how much more probabilities change across their borders than inside of them.

  python benchmarks/seams.py RUN --images=4 --window=128 --picture=seams.png

Each kind is compared with the whole image at the same places, where the image itself may change.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from jseg import Segmenter
from jseg.report import save_png
from jseg.run import Run
from jseg.tasks.inference import GRIDS, Inference
from jseg.tasks.windows import Window, overlapping, tiles

_IMAGES = flags.DEFINE_integer("images", 4, "number of images, evenly from the validation split")
_WINDOW = flags.DEFINE_integer("window", 128, "height and width of a window")
_PICTURE = flags.DEFINE_string("picture", "", "PNG of how sure the network is in the first image")

KINDS = {
  "no overlap": Inference("window", overlap=0, blend="uniform"),
  "tiles, a quarter of margin": Inference("tile"),
  "overlap, uniform": Inference("window", blend="uniform"),
  "overlap, Gaussian": Inference("window"),
}


def windows_of(protocol: Inference, shape: Sequence[int]) -> list[Window]:
  """The windows that a protocol shows of an image."""
  size = (_WINDOW.value,) * 2
  if protocol.mode == "tile":
    return tiles(shape, size, protocol.margins(size), GRIDS[2])
  return overlapping(shape, size, protocol.overlap, GRIDS[2])


def changes(probabilities: np.ndarray, axis: int) -> np.ndarray:
  """Mean change of the probabilities from each row or column to the next, float [length - 1]."""
  return (np.abs(np.diff(probabilities, axis=axis)).sum(-1) / 2).mean(1 - axis)


def sums(probabilities: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
  """Change and number of rows and columns, within windows and where one begins or ends: [2 2]."""
  result = np.zeros((2, 2))
  for axis in (0, 1):
    change = changes(probabilities, axis)
    edges = {end for w in windows for end in (w.place[axis].start, w.place[axis].stop)}
    across = np.isin(np.arange(1, len(change) + 1), list(edges))
    for place in (0, 1):
      part = change[across == place]
      result[place] += part.sum(), part.size
  return result


def main(argv: Sequence[str]) -> None:
  """Prints a line for each kind."""
  run = Run.open(argv[1])
  source = run.dataset().source(run.config.data.eval_split)
  chosen = np.linspace(0, len(source) - 1, _IMAGES.value).round().astype(int).tolist()
  images = [source[i]["image"] for i in chosen]
  largest = np.max([image.shape[:2] for image in images], 0).tolist()
  whole = Segmenter.from_run(run, changes={"data.size": tuple(largest)})
  expected = [whole(image).probabilities for image in images]
  sure = [expected[0].max(-1)]
  print(f"{'':28}across / inside   the whole image there   largest difference from it")
  for name, protocol in KINDS.items():
    keys = {f"inference.{key}": getattr(protocol, key) for key in ("mode", "overlap", "blend")}
    keys |= {"data.size": (_WINDOW.value,) * 2}
    segmenter = Segmenter.from_run(run, changes=keys, keep_scores=True)
    found, reference, largest_difference = np.zeros((2, 2)), np.zeros((2, 2)), 0.0
    for image, same in zip(images, expected, strict=True):
      probabilities = segmenter(image).probabilities
      windows = windows_of(protocol, image.shape[:2])
      found += sums(probabilities, windows)
      reference += sums(same, windows)
      largest_difference = max(largest_difference, np.abs(probabilities - same).max())
      if image is images[0]:
        sure.append(probabilities.max(-1))
    ratios = [(s[1, 0] / s[1, 1]) / (s[0, 0] / s[0, 1]) for s in (found, reference)]
    print(f"{name:28}{ratios[0]:15.2f}   {ratios[1]:21.2f}   {largest_difference:.2f}", flush=True)
  if _PICTURE.value:
    picture = np.rint(255 * np.concatenate(sure, 1)).astype(np.uint8)
    save_png(pathlib.Path(_PICTURE.value), [picture], picture.shape)


if __name__ == "__main__":
  app.run(main)
