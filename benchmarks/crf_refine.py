"""Gain of a trained run by the dense CRF: tuned on half of the images, evaluated on the others.

python benchmarks/crf_refine.py RUN --images=20 --shrink=2 --picture=crf.png
"""

from typing import Any

import cv2
import numpy as np
from absl import app, flags
from PIL import Image

from jseg import Segmenter
from jseg.crf import CrfParams
from jseg.metrics import BoundaryState, ConfusionState, host_confusion
from jseg.report import colorize
from jseg.run import Run
from jseg.tasks.semantic.predict import SemanticPrediction
from jseg.tuning import RANGES, search

_SPLIT = flags.DEFINE_string("split", "val", "split of the run's data set")
_IMAGES = flags.DEFINE_integer("images", 20, "number of images of both halves together")
_SHRINK = flags.DEFINE_integer("shrink", 1, "divides height and width of images and labels")
_RANGES = flags.DEFINE_enum("ranges", "v2", list(RANGES), "ranges of the search")
_TUNE = flags.DEFINE_bool("tune", True, "whether to tune the parameters")
_PICTURE = flags.DEFINE_string("picture", "", "PNG of image, before, after and truth")


def _shrunk(example: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  image, label = example["image"], example["label"]
  size = tuple(n // _SHRINK.value for n in label.shape[::-1])
  return (
    cv2.resize(image, size, interpolation=cv2.INTER_AREA),
    cv2.resize(label, size, interpolation=cv2.INTER_NEAREST),
  )


def main(argv: list[str]) -> None:
  """Prints mIoU and boundary IoU, and draws some images."""
  run = Run.open(argv[1])
  source, classes = run.dataset().source(_SPLIT.value), run.classes
  segmenter = Segmenter.from_run(argv[1])
  indices = np.linspace(0, len(source) - 1, min(_IMAGES.value, len(source))).astype(int)
  pairs = [_shrunk(source[int(i)]) for i in indices]
  examples = [(segmenter(image), label) for image, label in pairs]
  k, held_out = len(classes.names), examples[1::2]

  def evaluate(name: str, params: CrfParams | None) -> list[SemanticPrediction]:
    state, boundary, refined = ConfusionState.empty(k), BoundaryState.empty(k), []
    for prediction, label in held_out:
      refined.append(prediction if params is None else prediction.refine(params))
      state = state.update(host_confusion(refined[-1].mask, label, k))
      boundary = boundary.update(refined[-1].mask, label)
    miou, edge = state.compute().miou, np.nanmean(boundary.iou())
    print(f"{name}: mIoU {100 * miou:.2f} %, boundary IoU {100 * edge:.2f} %", flush=True)
    return refined

  print(f"evaluated on {len(held_out)} images")
  before = evaluate("without", None)
  after = evaluate("DeepLab V2's parameters", CrfParams())
  if _TUNE.value:
    tuning = search(examples[::2], RANGES[_RANGES.value])
    print(f"tuned on {len(examples[::2])} others, {len(tuning.trials)} trials; there mIoU")
    print(f"{100 * tuning.without:.2f} -> {100 * tuning.miou:.2f} % with {tuning.trials[0][0]}")
    after = evaluate("tuned", tuning.params)
  if _PICTURE.value:
    rows = [
      np.concatenate([a.image, *(colorize(m, classes.palette) for m in (a.mask, b.mask, t))], 1)
      for a, b, (_, t) in zip(before, after, held_out, strict=True)
    ]
    Image.fromarray(np.concatenate(rows[:4], 0)).save(_PICTURE.value)


if __name__ == "__main__":
  app.run(main)
