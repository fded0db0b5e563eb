"""Instance segmentation: the losses of Mask R-CNN (He et al. 2017, arXiv:1703.06870, section 3)."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table
from rich.text import Text

from jseg import config as configs
from jseg import data, models
from jseg.average_precision import AveragePrecisionState, InstanceScores
from jseg.predict import InstanceSegmenter
from jseg.report import (
  CONSOLE,
  InstanceSample,
  draw_objects,
  precision_table,
  save_instance_samples,
  spread,
  terminal_pictures,
)
from jseg.step import (
  TrainStep,
  make_detect_step,
  make_moments_step,
  make_update_step,
  objects_forward,
)
from jseg.tasks.batches import make_results, training_batches
from jseg.types import Array, Detections, InputError, InstanceOutputs, Targets

# Where the smooth L1 loss turns from a parabola to a line, as in torchvision.
_BETA = 1 / 9


def losses(outputs: InstanceOutputs) -> dict[str, tuple[Array, Array]]:
  """The network's losses by name, each as (sum, count) of float32 scalars.

  Returns:
    rpn_objectness: binary cross-entropy of the sampled anchors, and their number.
    rpn_box: smooth L1 of the sampled anchors that match an object, over all sampled anchors.
    box_class: cross-entropy of the sampled regions, and their number.
    box: smooth L1 of the sampled regions that match an object, over all sampled regions.
    mask: binary cross-entropy of the true class's mask, and the number of its cells.

    What isn't sampled adds nothing and gets no gradient. Counts are 0 where there is nothing.
  """
  anchors = outputs.rpn_sampled
  regions = outputs.sampled
  matched_anchors = anchors & outputs.rpn_labels
  matched_regions = regions & (outputs.classes > 0)
  mask = jnp.broadcast_to(outputs.mask_valid[..., None, None], outputs.masks.shape)
  # Not `jseg.losses.cross_entropy`, whose classes are bytes.
  truth = jax.nn.one_hot(outputs.classes, outputs.class_logits.shape[-1])
  surprise = -(jax.nn.log_softmax(outputs.class_logits) * truth).sum(-1)
  return {
    "rpn_objectness": (
      _sum(_binary(outputs.rpn_logits, outputs.rpn_labels.astype(jnp.float32)), anchors),
      _count(anchors),
    ),
    "rpn_box": (
      _sum(_smooth_l1(outputs.rpn_deltas - outputs.rpn_targets), matched_anchors),
      _count(anchors),
    ),
    "box_class": (_sum(surprise, regions), _count(regions)),
    "box": (
      _sum(_smooth_l1(outputs.deltas - outputs.targets), matched_regions),
      _count(regions),
    ),
    "mask": (_sum(_binary(outputs.mask_logits, outputs.masks), mask), _count(mask)),
  }


def keypoint_loss(
  logits: Array, points: Array, visible: Array, boxes: Array
) -> tuple[Array, Array]:
  """Cross-entropy over the cells of a region, in one of which each keypoint is (section 5).

  Args:
    logits: float32 [p s s q], as the keypoint head returns them.
    points: float32 [p q 2], row and column in pixels.
    visible: bool [p q]. Keypoints that aren't, and those outside of their region, don't count.
    boxes: float32 [p 4], the regions.

  Returns:
    (sum, number of keypoints that count). torchvision divides by it, Detectron likewise.
  """
  cells = logits.shape[1]
  low, length = boxes[:, None, :2], jnp.maximum(boxes[:, None, 2:] - boxes[:, None, :2], 1e-3)
  at = jnp.floor((points - low) / length * cells)
  # The far edges belong to the last cells.
  at = jnp.where(points == boxes[:, None, 2:], cells - 1, at)
  counts = visible & ((at >= 0) & (at < cells)).all(-1)
  index = jnp.where(counts, at[..., 0] * cells + at[..., 1], 0).astype(jnp.int32)
  log_p = jax.nn.log_softmax(logits.reshape(len(logits), cells**2, -1), 1)
  right = jnp.take_along_axis(log_p, index[:, None], 1)[:, 0]
  return -_sum(right, counts), _count(counts)


def _binary(logits: Array, target: Array) -> Array:
  """Cross-entropy of a sigmoid, in nats."""
  return jax.nn.softplus(logits) - logits * target


def _smooth_l1(difference: Array) -> Array:
  """[... 4] -> [...], summed over coordinates."""
  size = jnp.abs(difference)
  return jnp.where(size < _BETA, size**2 / (2 * _BETA), size - _BETA / 2).sum(-1)


def _sum(values: Array, where: Array) -> Array:
  return jnp.where(where, values, 0.0).sum()


def _count(where: Array) -> Array:
  return where.sum(dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class InstanceTask:
  """Segmentation of objects one by one, as `jseg.tasks.Task` asks for it."""

  measure: ClassVar[str] = "map"
  title: ClassVar[str] = "mask AP"

  config: Any
  dataset: data.Dataset

  def check_fit(self) -> None:
    """Refuses a data set without objects, and says how many don't fit.

    Raises:
      InputError: the data set tells no objects apart.
    """
    config, dataset = self.config, self.dataset
    if not dataset.has_objects:
      fitting = [name for name in models.names() if models.task(name) == "semantic"]
      raise InputError(
        f"model.name: {config.model.name} finds objects one by one, but the masks of "
        f"{config.data.name} hold classes only; bring instance ids, or choose from "
        f"{', '.join(fitting)}"
      )
    images, objects = dataset.left_out(config.data.train_split, config.data.max_objects)
    if objects:
      CONSOLE.print(
        f"{images} training images have more than data.max_objects={config.data.max_objects} "
        f"objects; the largest are trained on and {objects} are left out"
      )

  def batches(self, seed: int) -> Any:
    """Endless training batches; see `jseg.data.train_iterator`."""
    knobs = self.config.data
    objects = (knobs.max_objects, knobs.mask_size)
    return training_batches(
      self.config, self.dataset, seed, objects=objects, short_side=knobs.short_side
    )

  def make_train_step(self, model: nn.Module, optimizer: optax.GradientTransformation) -> TrainStep:
    """The training step: the sum of `losses`, each times its weight in the configuration."""
    weights = dict(self.config.loss)

    def terms(outputs: InstanceOutputs, _: Targets) -> dict[str, tuple[Array, Array, float]]:
      return {name: (*term, weights[name]) for name, term in losses(outputs).items()}

    forward = objects_forward(model, configs.make_augment(self.config))
    knobs = {"ema": self.config.ema, "freeze": self.config.optim.freeze}
    return make_update_step(optimizer, forward, terms, lambda *_: {}, **knobs)

  def make_moments_step(self, model: nn.Module) -> Callable[..., Any]:
    """What each norm sees in a training batch; see `jseg.step.make_moments_step`."""
    return make_moments_step(model, configs.make_augment(self.config), objects_forward)

  def training_measures(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Nothing: how well objects are found is measured on whole images."""
    del counts
    return {}

  def make_evaluator(self, model: nn.Module, split: str) -> Callable[[Any], InstanceScores]:
    """Makes `evaluate(variables) -> InstanceScores` over one split, at the images' own size."""
    source = self.dataset.source(split)
    step = make_detect_step(model, data.prepare)
    short_side = self.config.data.short_side
    results = make_results(
      self.config, self.dataset, split, step, label_size=None, short_side=short_side
    )

    def evaluate(variables: Any) -> InstanceScores:
      state = AveragePrecisionState.empty(len(self.dataset.classes.names))
      for indices, sizes, detections in map(jax.device_get, results(variables)):
        for place, index in enumerate(indices.tolist()):
          if index >= 0:
            truth = source[index]["objects"]
            found = one_image(detections, place, sizes[place], truth.size)
            state = state.update(index, truth, found)
      return state.compute(max_detections=self.config.model.detections)

    return evaluate

  def log_line(self, scores: InstanceScores) -> dict[str, float]:
    """What the log says of an evaluation."""
    masks, boxes = scores.masks, scores.boxes
    return {"map": masks.ap, "map50": masks.ap50, "box_map": boxes.ap, "box_map50": boxes.ap50}

  def save_scores(
    self,
    scores: InstanceScores,
    path: pathlib.Path,
    about: Mapping[str, Any],
    extra: Mapping[str, Any],
  ) -> None:
    """Writes the measures as PATH.json."""
    result = {**about, "resolution": "original", **scores.to_dict(self.dataset.classes.names)}
    path.with_suffix(".json").write_text(json.dumps({**result, **extra}, indent=2) + "\n")

  def table(self, scores: InstanceScores, title: str) -> Table:
    """Average precision and recall by class and by size."""
    return precision_table(scores, self.dataset.classes.names, title)

  def make_samples(self, model: nn.Module, split: str) -> Callable[[Any], list[InstanceSample]]:
    """Makes `samples(variables) -> [(image, truth, what was found)]`, from all over a split."""
    config, source = self.config, self.dataset.source(split)
    segmenter = InstanceSegmenter(
      *(model, {}, self.dataset.classes, config.data.size, config.data.channels),
      short_side=config.data.short_side,
    )

    def samples(variables: Any) -> list[InstanceSample]:
      segmenter.variables = variables
      rows = []
      for index in spread(config.samples, len(source)):
        record = source[index]
        prediction = segmenter(record["image"])
        rows.append((prediction.image, record["objects"], prediction.objects))
      return rows

    return samples

  def save_samples(self, rows: Sequence[InstanceSample], path: pathlib.Path, title: str) -> None:
    """Draws image, truth and what was found side by side."""
    save_instance_samples(rows, self.dataset.classes.names, path, title)

  def show_samples(self, rows: Sequence[InstanceSample], width: int) -> Text:
    """The same for a terminal of `width` characters."""
    names = self.dataset.classes.names
    pictures = [
      [image, *(draw_objects(image, objects, names) for objects in both)] for image, *both in rows
    ]
    return terminal_pictures(pictures, width)


def one_image(
  detections: Detections, place: int, covered: Sequence[int], size: Sequence[int]
) -> data.Objects:
  """What was found in one image of a batch, at the image's own size.

  Args:
    detections: of the batch, as arrays of NumPy.
    place: of the image in the batch.
    covered: height and width of the image as the network saw it.
    size: its own.
  """
  mine = jax.tree.map(lambda a: a[place], detections)
  return data.found_objects(mine, tuple(covered), tuple(size))
