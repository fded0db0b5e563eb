"""Segmentation into classes that may overlap: a sigmoid and a threshold for each.

Networks, augmentation, configuration and what a run does are those of `jseg.tasks.semantic`; this
task takes over where a data set's classes have `combinations`. Void of a class alone is neither
trained on nor counted.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jseg import hosts, images, losses
from jseg.config_values import build
from jseg.data import Dataset, flatten_volume
from jseg.data.overlaps import expand
from jseg.data.records import Decoded
from jseg.metrics import OverlapScores, overlap_counts
from jseg.report import ALPHA
from jseg.scaling import statistics
from jseg.step import LossFn, replicate
from jseg.tasks.batches import make_results
from jseg.tasks.multilabel import forward
from jseg.tasks.multilabel.decision import Thresholds
from jseg.tasks.multilabel.predict import (
  KINDS,
  NO_CRF,
  MultilabelPrediction,
  draw,
  output_names,
)
from jseg.tasks.semantic.evaluation import decided_rows
from jseg.tasks.semantic.forward import Targets, make_eval_step
from jseg.tasks.semantic.predict import SemanticPredictor
from jseg.tasks.semantic.task import SemanticTask
from jseg.types import Array, InputError, Json, Outputs, Variables


@dataclasses.dataclass(frozen=True)
class MultilabelTask(SemanticTask):
  """Segmentation into classes that may overlap, as `jseg.tasks.Task` describes it."""

  metric_names: ClassVar[tuple[str, ...]] = ("miou", "mdice", "macc")
  predict_options: ClassVar[tuple[str, ...]] = ("keep_scores",)
  evaluate_options: ClassVar[tuple[str, ...]] = ()
  kinds: ClassVar[tuple[str, ...]] = KINDS

  @property
  def _combinations(self) -> forward.Combinations:
    assert self.classes.combinations is not None
    return self.classes.combinations

  @property
  def _decision(self) -> Thresholds:
    values = tuple(map(float, self.config.multilabel.threshold))
    return Thresholds(values * len(self.classes.names) if len(values) == 1 else values)

  def check_data(self, dataset: Dataset) -> None:
    """Refuses a data set and a configuration that aren't of the same kind.

    Raises:
      InputError: as for `SemanticTask`, or the configuration asks for what needs one class a pixel.
    """
    super().check_data(dataset)
    config, names = self.config, dataset.classes.names
    which = f"the classes of {config.data.name} may overlap"
    off = {
      "loss.balance": "none",
      "loss.border_weight": 0.0,
      "crf.train": False,
      "inference.crf": False,
    }
    for key, value in off.items():
      section, _, name = key.partition(".")
      if section in config and config[section][name] != value:
        raise InputError(f"{key}: {config[section][name]!r} needs one class a pixel, and {which}")
    if config.best_metric not in ("", *self.metric_names):
      raise InputError(
        f"best_metric: {config.best_metric!r} needs one class a pixel, and {which}; choose from "
        f"{', '.join(self.metric_names)}"
      )
    if len(self._decision.values) != len(names):
      raise InputError(
        f"multilabel.threshold: {len(self._decision.values)} numbers, but {config.data.name} has "
        f"{len(names)} classes ({', '.join(names)}); give one for all, or one each"
      )
    self._loss()

  def _loss(self) -> losses.Loss:
    arguments = {name: self.config.loss[name] for name in losses.arguments()}
    return build("loss", losses.make_loss, overlapping=True, **arguments)

  def losses(self, dataset: Dataset) -> LossFn:
    """Returns the configured loss of the logits, "main", and of each auxiliary output."""
    weights = self.config.loss.class_weights
    return forward.make_losses(
      self._loss(), self._combinations, jnp.asarray(weights, jnp.float32) if weights else None
    )

  def counts(self, outputs: Outputs, targets: Targets) -> dict[str, Array]:
    """Returns what is right, wrong and missed of each class in a batch, at the crop's size."""
    return forward.training_counts(outputs, targets, self._combinations, self._decision)

  def training_metrics(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the mIoU of training batches, from their summed counts."""
    return {"miou": OverlapScores(counts["overlaps"][None]).primary}

  def evaluator(  # type: ignore[override]  # its scores are others
    self, dataset: Dataset, split: str
  ) -> Callable[[Variables], OverlapScores]:
    """Returns `evaluate(variables)`, exact at the images' own size.

    Args:
      dataset: data set of the run.
      split: split of the data set.
    """
    self._check_measured()
    source, k = dataset.source(split), len(self.classes.names)

    def empty() -> np.ndarray:
      return np.zeros((len(source), 3, k), np.int64)

    if not self._shows_whole(dataset, split):
      predict = self.predictor()

      def evaluate_images(variables: Variables) -> OverlapScores:
        local = jax.tree.map(lambda x: x.addressable_data(0), variables)
        counts = empty()
        for index, label, found, _ in decided_rows(predict, local, dataset, split):
          counts[index] += np.asarray(overlap_counts(found, expand(label, self._combinations)))
        return OverlapScores(hosts.add_up(counts))

      return evaluate_images
    count = functools.partial(
      forward.count_batch, combinations=self._combinations, decision=self._decision
    )
    prepare = functools.partial(images.prepare, statistics=statistics(self.config))
    step = make_eval_step(self.model, prepare, count)
    results = make_results(self.config, dataset, split, step, label_size=dataset.max_size(split))

    def evaluate_batches(variables: Variables) -> OverlapScores:
      counts = empty()
      for index, found in map(jax.device_get, results(variables)):
        counts[index[index >= 0]] = found[index >= 0]
      return OverlapScores(counts)

    return evaluate_batches

  def measure(  # type: ignore[override]  # it has no options
    self, variables: Variables, dataset: Dataset, split: str
  ) -> tuple[OverlapScores, Json]:
    """Returns the metrics of a split, and the thresholds."""
    scores = self.evaluator(dataset, split)(replicate(variables))
    return scores, {"threshold": list(self._decision.values)}

  def save_plots(self, scores: Any, path: pathlib.Path) -> None:
    """Writes nothing: where classes overlap there is no confusion matrix."""

  def predictor(self, **options: Any) -> SemanticPredictor:
    """Returns the function that segments single images; see `SemanticPredictor`.

    Raises:
      InputError: the protocol has a CRF.
    """
    if self.config.inference.crf:
      raise InputError(f"inference.{NO_CRF}")
    return self._make_predictor(decision=self._decision, make=MultilabelPrediction, **options)

  def outputs(self, stem: str, write: Sequence[str] = ()) -> list[str]:
    """Returns the names of masks, overlay and legend, or of what else is to be written."""
    return output_names(stem, self.classes.names, self.model.ndim, write)

  def report(self, results: Mapping[str, Sequence[float]], out: pathlib.Path) -> Table:
    """Returns the table of each class's mean share of the pixels."""
    table = super().report(results, out)
    table.caption = "classes may overlap"
    return table

  def pictures(
    self, prediction: Any, example: Decoded
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image, and truth and prediction over it; of volumes, the middle slice."""
    truth = expand(example["label"], self._combinations)
    image, truth, mask = flatten_volume(prediction.image, truth, prediction.mask)
    image = images.picture(image, self.config.data.shown)
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    drawn = [draw(image, each, self.classes.palette, ALPHA) for each in (truth, mask)]
    return image, drawn[0], drawn[1]

  def _colored(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    return draw(image, expand(label, self._combinations), self.classes.palette, 0.5)

  def legend(self) -> list[tuple[str, Sequence[int]]]:
    """Returns name and color of each class."""
    return list(zip(self.classes.names, self.classes.palette.tolist(), strict=True))
