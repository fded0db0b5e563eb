"""Segmentation of images and volumes: one class a pixel."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table
from rich.text import Text

from jseg import config as configs
from jseg import data, models
from jseg.losses import Loss, weights_of
from jseg.metrics import ConfusionState, Scores, confusion
from jseg.predict import Segmenter
from jseg.report import (
  Sample,
  save_confusion_plot,
  save_samples,
  score_table,
  spread,
  terminal_samples,
)
from jseg.step import TrainStep, make_eval_step, make_moments_step, make_train_step
from jseg.tasks.batches import make_results, training_batches
from jseg.types import Array, InputError, Outputs


def make_task_loss(
  loss: Loss, aux_weights: Mapping[str, float], class_weights: Array | None = None
) -> Callable[[Outputs, Array, Array | None], tuple[Array, Array]]:
  """Makes `(outputs, label, border) -> (sum, count)`.

  Args:
    loss: of logits and labels (`jseg.losses.make_loss`).
    aux_weights: of the auxiliary outputs' losses, by name.
    class_weights: float [k], or None.

  Returns:
    The loss of the logits, plus each auxiliary output's times its weight. Labels are int32 [b h w]
    of the logits' size, IGNORE where nothing is known. `border` float32 [b h w] or None is added to
    each pixel's class weight, as in U-Net's w = w_c + w_0 exp(...) (Ronneberger et al. 2015,
    equation 2), whose loss is not divided by the weights.
  """

  def task_loss(outputs: Outputs, label: Array, border: Array | None = None) -> tuple[Array, Array]:
    if border is None:
      weights = {"class_weights": class_weights}
    else:
      by_class = 1.0 if class_weights is None else weights_of(label, class_weights)
      weights = {"pixel_weights": border + by_class}
    total, count = loss(outputs.logits, label, **weights)
    for name, logits in outputs.aux.items():
      if name not in aux_weights:
        raise InputError(f"aux_weights.{name} is missing; say what that output's loss counts")
      extra, extra_count = loss(logits, label, **weights)
      # Counts differ only where a loss picks its pixels by the logits.
      share = count / jnp.where(extra_count > 0, extra_count, 1.0)
      total += aux_weights[name] * extra * share
    return total, count

  return task_loss


def training_counts(outputs: Outputs, label: Array) -> Array:
  """Confusion matrix int32 [k k] of a training batch, at the resolution of the crop."""
  logits = outputs.logits
  return confusion(jnp.argmax(logits, -1), label, logits.shape[-1])


@dataclasses.dataclass(frozen=True)
class SemanticTask:
  """Segmentation of images and volumes, as `jseg.tasks.Task` asks for it."""

  measure: ClassVar[str] = "miou"
  title: ClassVar[str] = "mIoU"

  config: Any
  dataset: data.Dataset

  def check_fit(self) -> None:
    """Refuses a data set and a configuration that aren't of the same kind.

    Raises:
      InputError: volumes for a network of images or the reverse, volumes that the canvas can't
        hold, objects without labels, or not one class weight a class.
    """
    config, dataset = self.config, self.dataset
    kinds = {2: "images", 3: "volumes"}
    wanted = models.ndim(config.model.name)
    if dataset.ndim != wanted:
      fitting = [name for name in models.names() if models.ndim(name) == dataset.ndim]
      raise InputError(
        f"model.name: {config.model.name} takes {kinds[wanted]}, but {config.data.name} holds "
        f"{kinds[dataset.ndim]}; choose from {', '.join(fitting)}"
      )
    if not dataset.has_labels:
      raise InputError(
        f"model.name: {config.model.name} learns the class of every pixel, but {config.data.name} "
        "tells objects only; choose mask_rcnn, or bring masks of classes"
      )
    if dataset.ndim == 3:
      for split in (config.data.train_split, config.data.eval_split):
        data.check_canvas(dataset.max_size(split), tuple(config.data.size))
    weights = config.loss.class_weights
    if weights and len(weights) != len(dataset.classes.names):
      raise InputError(
        f"loss.class_weights: {len(weights)} numbers, but {config.data.name} has "
        f"{len(dataset.classes.names)} classes ({', '.join(dataset.classes.names)}); give one each"
      )

  def batches(self, seed: int) -> Any:
    """Endless training batches; see `jseg.data.train_iterator`."""
    loss = self.config.loss
    border = (loss.border_weight, loss.border_sigma) if loss.border_weight else None
    return training_batches(self.config, self.dataset, seed, border=border)

  def make_train_step(self, model: nn.Module, optimizer: optax.GradientTransformation) -> TrainStep:
    """The training step; see `jseg.step.make_train_step`."""
    config = self.config
    loss = make_task_loss(configs.make_loss(config), config.aux_weights, self._class_weights())
    augment = configs.make_augment(config)
    knobs = {"ema": config.ema, "freeze": config.optim.freeze}
    return make_train_step(model, optimizer, augment, loss, training_counts, **knobs)

  def _class_weights(self) -> Array | None:
    """What each class weighs in the loss: float32 [k], or None where all weigh the same."""
    loss = self.config.loss
    if loss.balance == "median":
      weights = self.dataset.median_frequency_weights(self.config.data.train_split)
      return jnp.asarray(weights, jnp.float32)
    return jnp.asarray(loss.class_weights, jnp.float32) if loss.class_weights else None

  def make_moments_step(self, model: nn.Module) -> Callable[..., Any]:
    """What each norm sees in a training batch; see `jseg.step.make_moments_step`."""
    return make_moments_step(model, configs.make_augment(self.config))

  def training_measures(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What the log says of training batches whose measures add up to `counts`."""
    return {"miou": ConfusionState(counts["confusion"]).compute().miou}

  def make_evaluator(self, model: nn.Module, split: str) -> Callable[[Any], Scores]:
    """Makes `evaluate(variables) -> Scores` over one split."""
    step, canvas = make_eval_step(model, data.prepare), self.dataset.max_size(split)
    results = make_results(self.config, self.dataset, split, step, label_size=canvas)

    def evaluate(variables: Any) -> Scores:
      state = ConfusionState.empty(len(self.dataset.classes.names))
      for counts in results(variables):
        state = state.update(counts)
      return state.compute()

    return evaluate

  def log_line(self, scores: Scores) -> dict[str, float]:
    """What the log says of an evaluation."""
    means = ("miou", "mdice", "macc", "pixel_accuracy", "fwiou")
    return {name: getattr(scores, name) for name in means}

  def save_scores(
    self, scores: Scores, path: pathlib.Path, about: Mapping[str, Any], extra: Mapping[str, Any]
  ) -> None:
    """Writes the measures as PATH.json and the confusion matrix as PATH_confusion.png."""
    names = self.dataset.classes.names
    result = {**about, "resolution": "original", **scores.to_dict(names), **extra}
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    save_confusion_plot(scores, names, path.with_name(f"{path.name}_confusion.png"))

  def table(self, scores: Scores, title: str) -> Table:
    """The measures by class."""
    return score_table(scores, self.dataset.classes.names, title)

  def make_samples(self, model: nn.Module, split: str) -> Callable[[Any], list[Sample]]:
    """Makes `samples(variables) -> [(image, truth, prediction)]`, from all over a split."""
    config, source = self.config, self.dataset.source(split)
    segmenter = Segmenter(model, {}, self.dataset.classes, config.data.size, config.data.channels)

    def samples(variables: Any) -> list[Sample]:
      segmenter.variables = variables
      rows = []
      for index in spread(config.samples, len(source)):
        record = source[index]
        prediction = segmenter(record["image"])
        image, label, mask = data.flatten_volume(prediction.image, record["label"], prediction.mask)
        rows.append((image, label, mask))
      return rows

    return samples

  def save_samples(self, rows: Sequence[Sample], path: pathlib.Path, title: str) -> None:
    """Draws image, truth and prediction side by side."""
    classes = self.dataset.classes
    save_samples(rows, classes.names, classes.palette, path, title)

  def show_samples(self, rows: Sequence[Sample], width: int) -> Text:
    """The same for a terminal of `width` characters."""
    return terminal_samples(rows, self.dataset.classes.palette, width)
