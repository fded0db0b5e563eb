"""Parameters of the dense CRF after a trained network, by a grid search on cached predictions."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jseg import hosts, json_files, remote
from jseg.arithmetic import evenly_spaced
from jseg.console import progress
from jseg.crf import CrfParams, params_from_dict, params_to_dict
from jseg.metrics import ConfusionState, host_confusion, none_if_nan
from jseg.outputs import try_file
from jseg.predict import Segmenter
from jseg.run import Run
from jseg.tasks.semantic.predict import SemanticPrediction
from jseg.types import InputError

RANGES: dict[str, dict[str, tuple[float, float]]] = {
  "v1": {
    "bilateral_weight": (5, 10),
    "bilateral_sigma_xy": (50, 100),
    "bilateral_sigma_rgb": (3, 10),
  },
  "v2": {
    "bilateral_weight": (3, 6),
    "bilateral_sigma_xy": (30, 100),
    "bilateral_sigma_rgb": (3, 6),
  },
}
"""What DeepLab's papers search: V1 (arXiv:1412.7062, section 5.1), V2 (arXiv:1606.00915, 4.1)."""


@dataclasses.dataclass(frozen=True)
class Tuning:
  """The result of a search.

  Attributes:
    params: the best parameters.
    trials: (values, mIoU) of all trials, the best first.
    without: mIoU of the same images without a CRF.
  """

  params: CrfParams
  trials: Sequence[tuple[dict[str, float], float]]
  without: float

  @property
  def miou(self) -> float:
    """MIoU with the best parameters, on the images they were chosen by."""
    return self.trials[0][1]


def tune_crf(
  run: str | pathlib.Path | Run,
  *,
  split: str | None = None,
  checkpoint: str | int = "best",
  root: str | None = None,
  images: int = 20,
  ranges: str = "v2",
  base: CrfParams | None = None,
  changes: Mapping[str, object] | None = None,
  protocol: str | None = None,
) -> Tuning:
  """Searches on images from all over a split, and writes the run's `crf.json`.

  The network sees each image once. Its predictions stay in memory at the size of the canvas, with 4
  bytes per pixel and class; of images in windows, at the image's own size.

  Args:
    run: the run directory.
    split: split of the run's data set; its validation split if None.
    checkpoint: "best", "latest", a step, or "average:N" of the last N (`Run.restore`).
    root: where the data set's files are now, if they have moved.
    images: number of images; V1 and V2 take 100.
    ranges: "v1" or "v2", a key of `RANGES`.
    base: the parameters that aren't searched.
    changes: configuration values by dotted key that are to differ, such as
      {"model.output_stride": 8}.
    protocol: how the network looks at an image, a key of
      `jseg.tasks.inference.PROTOCOLS`; the configuration's if None.

  Raises:
    InputError: no such run, checkpoint, split or ranges; the network is of volumes or objects;
      there are several processes; or `crf.json` can't be written, which is tried first.
  """
  hosts.refuse("tuning the CRF")
  if ranges not in RANGES:
    raise InputError(f"there are no ranges {ranges!r}; choose from {', '.join(RANGES)}")
  if images < 1:
    raise InputError(f"images: {images} must be at least 1; 20 to 100 are usual")
  opened = Run.open(run, changes, protocol=protocol)
  if "crf" not in opened.config:
    raise InputError(
      f"{opened.config.model.name}: the CRF is for classes of images; there is nothing to tune"
    )
  try_file(opened.files.crf, "make it writable, or tune a copy of the run")
  dataset = opened.dataset(root)
  split = split or opened.config.data.eval_split
  source = dataset.source(split)
  # What is searched comes after all else, and labels are of the images' own size.
  opened = Run.open(opened, {"inference.crf": False, "inference.output_size": "image"})
  segmenter = Segmenter.from_run(opened, checkpoint, keep_scores=True)
  indices = evenly_spaced(images, len(source))
  examples = []
  for index in progress(indices, "predicting", len(indices)):
    example = source[index]
    examples.append((segmenter(example["image"]), example["label"]))
  result = search(examples, RANGES[ranges], base)
  about = {
    "params": params_to_dict(result.params),
    "split": split,
    "images": len(indices),
    "miou": none_if_nan(result.miou),
    "miou_without": none_if_nan(result.without),
  }
  json_files.write(opened.files.crf, about)
  remote.keep(opened.path)
  return result


def search(
  examples: Sequence[tuple[SemanticPrediction, np.ndarray]],
  ranges: Mapping[str, tuple[float, float]],
  base: CrfParams | None = None,
) -> Tuning:
  """Coarse to fine: both ends and the middle of each range, then a quarter of it about the best.

  Args:
    examples: predictions without a CRF, and their labels uint8 [h w].
    ranges: (lowest, highest) by name of a parameter.
    base: the parameters that aren't searched.
  """
  base = CrfParams() if base is None else base
  num_classes = len(examples[0][0].classes.names)

  def measure(masks: Iterable[np.ndarray]) -> float:
    state = ConfusionState.empty(num_classes)
    for mask, (_, label) in zip(masks, examples, strict=True):
      state = state.update(host_confusion(mask, label, num_classes))
    return state.compute().miou

  names = list(ranges)
  found: dict[tuple[float, ...], float] = {}

  def best() -> tuple[float, ...]:
    return max(found, key=lambda values: found[values])

  def try_all(points: Sequence[tuple[float, ...]], stage: str) -> None:
    new = [values for values in points if values not in found]
    for values in progress(new, f"{stage} grid, {len(examples)} images", len(new)):
      params = params_from_dict(dict(zip(names, values, strict=True)), base)
      found[values] = measure(p.refine(params).mask for p, _ in examples)

  coarse = [(low, (low + high) / 2, high) for low, high in ranges.values()]
  try_all(list(itertools.product(*coarse)), "coarse")
  fine = [
    sorted({min(max(value + step * (high - low) / 4, low), high) for step in (-1, 0, 1)})
    for value, (low, high) in zip(best(), ranges.values(), strict=True)
  ]
  try_all(list(itertools.product(*fine)), "fine")
  ordered = sorted(found, key=lambda values: -found[values])
  trials = [(dict(zip(names, values, strict=True)), found[values]) for values in ordered]
  params = params_from_dict(trials[0][0], base)
  return Tuning(params, trials, measure(p.mask for p, _ in examples))
