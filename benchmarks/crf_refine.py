"""What the dense CRF does for a trained run: tuned on half of the images, measured on the others.

python benchmarks/crf_refine.py RUN --images=20 --shrink=2 --picture=crf.png
"""

from typing import Any

import cv2
import numpy as np
from absl import app, flags
from PIL import Image

from jseg import Segmenter
from jseg import config as configs
from jseg.checkpoint import load_run
from jseg.crf import CrfParams
from jseg.metrics import BoundaryState, ConfusionState, host_confusion
from jseg.report import colourise
from jseg.tune_crf import RANGES, search

_SPLIT = flags.DEFINE_string("split", "val", "of the run's data set")
_IMAGES = flags.DEFINE_integer("images", 20, "of both halves together, from all over the split")
_SHRINK = flags.DEFINE_integer("shrink", 1, "divides height and width of images and labels")
_RANGES = flags.DEFINE_enum("ranges", "v2", list(RANGES), "to search")
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
  config, classes = load_run(argv[1])
  source = configs.load_dataset(config).source(_SPLIT.value)
  segmenter = Segmenter.from_run(argv[1])
  indices = np.linspace(0, len(source) - 1, min(_IMAGES.value, len(source))).astype(int)
  pairs = [_shrunk(source[int(i)]) for i in indices]
  examples = [(segmenter(image), label) for image, label in pairs]
  tuning, held_out = search(examples[::2], RANGES[_RANGES.value]), examples[1::2]
  print(f"{len(tuning.trials)} trials on {len(examples[::2])} images; best {tuning.trials[0][0]}")
  print(f"on these: mIoU {100 * tuning.without:.2f} -> {100 * tuning.miou:.2f} %")
  print(f"on the other {len(held_out)}:")
  refined = {
    "without": [prediction for prediction, _ in held_out],
    "DeepLab V2's": [prediction.refine(CrfParams()) for prediction, _ in held_out],
    "tuned": [prediction.refine(tuning.params) for prediction, _ in held_out],
  }
  k = len(classes.names)
  for name, predictions in refined.items():
    state, boundary = ConfusionState.empty(k), BoundaryState.empty(k)
    for prediction, (_, label) in zip(predictions, held_out, strict=True):
      state = state.update(host_confusion(prediction.mask, label, k))
      boundary = boundary.update(prediction.mask, label)
    miou, edge = state.compute().miou, boundary.compute().miou
    print(f"  {name}: mIoU {100 * miou:.2f} %, boundary IoU {100 * edge:.2f} %")
  if _PICTURE.value:
    rows = [
      np.concatenate([a.image, *(colourise(m, classes.palette) for m in (a.mask, b.mask, t))], 1)
      for a, b, (_, t) in zip(refined["without"], refined["tuned"], held_out, strict=True)
    ]
    Image.fromarray(np.concatenate(rows[:4], 0)).save(_PICTURE.value)


if __name__ == "__main__":
  app.run(main)
