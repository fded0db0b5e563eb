"""Instance segmentation: one mask per object (Mask R-CNN, He et al. 2017, arXiv:1703.06870)."""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import grain
import jax
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from jseg import augment
from jseg.config_values import at_least, build
from jseg.console import CONSOLE, progress
from jseg.data import (
  IMAGE_SUFFIXES,
  NIFTI_SUFFIXES,
  SCIENTIFIC_SUFFIXES,
  ClassInfo,
  Dataset,
  objects_from_detections,
  read_image,
)
from jseg.data.records import Decoded
from jseg.data.survey import no_object
from jseg.images import network_picture, picture, prepare
from jseg.losses import DETECTION_LOSSES, detection_losses
from jseg.metrics import AveragePrecisionState, InstanceScores, coco_results
from jseg.metrics.average_precision import Row
from jseg.models import Network, fitting
from jseg.outputs import write_text
from jseg.report import draw_objects, same_colors
from jseg.scaling import statistics
from jseg.step import Forward, Losses, LossFn, replicate
from jseg.tasks.base import Serving, Unseen, check_channels, check_size, read_scaled
from jseg.tasks.batches import make_results, training_batches
from jseg.tasks.inference import Inference
from jseg.tasks.instance import forward
from jseg.tasks.instance.predict import (
  KINDS,
  InstancePrediction,
  InstancePredictor,
  output_names,
)
from jseg.types import Array, Detections, InputError, InstanceOutputs, Json, Targets, Variables

_PICTURE = 384  # pixels, longest side of a picture with objects


@dataclasses.dataclass(frozen=True)
class InstanceTask:
  """Instance segmentation, as `jseg.tasks.Task` describes it.

  Attributes:
    config: configuration of the run.
    model: network of the run.
    classes: names and colors of the classes.
  """

  metric: ClassVar[str] = "map"
  metric_names: ClassVar[tuple[str, ...]] = ("map", "map50", "box_map", "box_map50")
  title: ClassVar[str] = "mask AP"
  image_title: ClassVar[str] = "F1"
  predict_options: ClassVar[tuple[str, ...]] = ()
  evaluate_options: ClassVar[tuple[str, ...]] = ()
  folder_outputs: ClassVar[tuple[str, ...]] = ("detections.json",)
  kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)

  config: ConfigDict
  model: Network
  classes: ClassInfo

  @staticmethod
  def defaults(network: type[Network]) -> dict[str, dict[str, object]]:
    """Returns keys of `data`, and the sections `augment`, `loss` and `inference`.

    Keys:
      data.max_objects: objects per training image; the largest are taken.
      data.mask_size: cells along either side of a training mask.
      data.short_side: pixels that images' shorter sides are brought to; 0 leaves them as they are.
      augment.crop: size of the crops that are trained on, as data.size; () is data.size itself.
    """
    del network
    return {
      "data": {
        "max_objects": 100,
        "mask_size": 56,
        "short_side": 0,
      },
      "augment": {"crop": (), **augment.instance_arguments()},
      "loss": dict.fromkeys(DETECTION_LOSSES, 1.0),
      "inference": dataclasses.asdict(Inference()),
    }

  @staticmethod
  def check_config(config: ConfigDict, network: type[Network]) -> None:
    """Raises InputError for impossible values of the task's keys."""
    check_size("data.size", config.data.size, network.ndim)
    if config.augment.crop:
      check_size("augment.crop", config.augment.crop, network.ndim)
    check_channels(config.data, network.ndim)
    at_least({f"data.{key}": config.data[key] for key in ("max_objects", "mask_size")}, 1)
    at_least({"data.short_side": config.data.short_side}, 0)
    if config.data.short_side > min(config.data.size):
      raise InputError(
        f"data.short_side: {config.data.short_side} must fit data.size, {config.data.size}"
      )
    at_least({f"loss.{name}": weight for name, weight in config.loss.items()}, 0)
    inference = _make_inference(config)
    build("inference", inference.check, config.data.size)
    build("inference", inference.check_objects, config.data.short_side)
    _make_augment(config)

  @staticmethod
  def wrap(network: Network, config: ConfigDict) -> Network:
    """Returns the network as it is."""
    del config
    return network

  def check_data(self, dataset: Dataset) -> None:
    """Refuses a data set without objects, and reports how many objects don't fit.

    Raises:
      InputError: the data set doesn't tell objects apart, or its training split has none.
    """
    config = self.config
    if not dataset.has_objects:
      raise InputError(
        f"model.name: {config.model.name} finds objects one by one, but the masks of "
        f"{config.data.name} hold classes only; bring instance ids, or choose from "
        f"{', '.join(fitting(task='semantic'))}"
      )
    if dataset.scientific:
      _make_augment(config)  # which refuses what is for colors
    train = config.data.train_split
    if problem := no_object(train, *dataset.object_counts(train)):
      raise problem
    left_out, objects = dataset.left_out(train, config.data.max_objects)
    if objects:
      CONSOLE.print(
        f"{left_out} training images have more than data.max_objects={config.data.max_objects} "
        f"objects; the largest are trained on and {objects} are left out"
      )

  def batches(self, dataset: Dataset, seed: int) -> grain.DatasetIterator:
    """Returns endless training batches; see `jseg.data.train_iterator`."""
    keys = self.config.data
    return training_batches(
      self.config,
      dataset,
      seed,
      objects=(keys.max_objects, keys.mask_size),
      short_side=keys.short_side,
    )

  def forward(self, *, without_network: bool = False) -> Forward:
    """Returns the training pass; its targets are `jseg.types.Targets`."""
    network = Unseen(self.model) if without_network else self.model
    return forward.make_forward(network, _make_augment(self.config))

  def losses(self, dataset: Dataset) -> LossFn:
    """Returns the losses of `jseg.losses.detection_losses`."""
    del dataset

    def losses(outputs: InstanceOutputs, targets: Targets) -> Losses:
      del targets  # they were matched with the network's proposals
      return detection_losses(outputs)

    return losses

  def loss_weights(self) -> Mapping[str, float]:
    """Returns the weight of each loss in the configuration."""
    return dict(self.config.loss)

  def counts(self, outputs: InstanceOutputs, targets: Targets) -> dict[str, Array]:
    """Returns nothing: AP needs whole images."""
    del outputs, targets
    return {}

  def training_metrics(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns nothing: AP needs whole images."""
    del counts
    return {}

  def evaluator(self, dataset: Dataset, split: str) -> Callable[[Variables], InstanceScores]:
    """Returns `evaluate(variables)`, at the images' own size.

    Raises:
      InputError: pycocotools is missing.
    """
    nothing = AveragePrecisionState.empty(len(self.classes.names))  # before hours of training
    source = dataset.source(split)
    if not _make_inference(self.config).one_pass:
      predict = self.predictor()

      def evaluate_images(variables: Variables) -> InstanceScores:
        local, state = jax.tree.map(lambda x: x.addressable_data(0), variables), nothing
        indices = range(jax.process_index(), len(source), jax.process_count())
        for index in progress(indices, f"evaluating {split}", len(indices)):
          example = source[index]
          found = predict(local, example["image"]).objects
          state = state.update(index, example["objects"], found)
        return state.gather().compute(max_detections=None)

      return evaluate_images
    prepared = functools.partial(prepare, statistics=statistics(self.config))
    step = forward.make_detect_step(self.model, prepared)
    short_side = self.config.data.short_side
    results = make_results(
      self.config, dataset, split, step, label_size=None, short_side=short_side
    )

    def evaluate_batches(variables: Variables) -> InstanceScores:
      state = nothing
      for indices, sizes, detections in map(jax.device_get, results(variables)):
        for place, index in enumerate(indices.tolist()):
          if index < 0:  # padding of the last batch
            continue
          truth = source[index]["objects"]
          image = jax.tree.map(lambda a, place=place: a[place], detections)
          found = objects_from_detections(image, tuple(sizes[place]), tuple(truth.size))
          state = state.update(index, truth, found)
      return state.compute(max_detections=None)

    return evaluate_batches

  def measure(
    self, variables: Variables, dataset: Dataset, split: str, **options: Any
  ) -> tuple[InstanceScores, Json]:
    """Returns AP, which is all there is."""
    del options
    return self.evaluator(dataset, split)(replicate(variables)), {}

  def save_plots(self, scores: InstanceScores, path: pathlib.Path) -> None:
    """Writes nothing."""

  @property
  def suffixes(self) -> Collection[str]:
    """File name endings of images, or of scientific images."""
    return SCIENTIFIC_SUFFIXES if self.config.data.low else IMAGE_SUFFIXES

  def read(self, path: pathlib.Path) -> np.ndarray:
    """Reads an image. Raises InputError if it can't be read, or is a volume."""
    if path.name.lower().endswith(NIFTI_SUFFIXES):
      raise InputError(
        f"{path} is a volume (NIfTI), but {self.config.model.name} takes images; "
        "save its slices as PNG"
      )
    if self.config.data.low:
      return np.asarray(read_scaled(self.config.data, path))
    return read_image(path)

  def predictor(self) -> InstancePredictor:
    """Returns the function that finds the objects of single images."""
    keys = self.config.data
    return InstancePredictor(
      self.model,
      self.classes,
      keys.size,
      keys.channels,
      inference=_make_inference(self.config),
      batch_size=keys.eval_batch_size,
      short_side=keys.short_side,
      statistics=statistics(self.config),
      bands=tuple(keys.shown),
    )

  def serving(self) -> Serving:
    """Raises InputError: boxes and masks of objects can't be exported yet."""
    raise InputError(
      f"{self.config.model.name} finds objects; only networks with one class per pixel can be "
      "exported"
    )

  @staticmethod
  def foreign_data(num_classes: int) -> dict[str, object]:
    """Returns a folder, with images of the size that torchvision's networks see."""
    del num_classes
    return {"name": "folder", "size": (1333, 1333), "short_side": 800, "eval_batch_size": 1}

  def outputs(self, stem: str, write: Sequence[str] = ()) -> list[str]:
    """Returns the names of the map of instances and the overlay, or of one of them."""
    return output_names(stem, write)

  def result(self, prediction: InstancePrediction, file: str) -> list[Row]:
    """Returns the objects as COCO's results."""
    return coco_results([(file, prediction.objects)], self.classes.values)

  def report(self, results: Mapping[str, list[Row]], out: pathlib.Path) -> Table:
    """Writes all objects to `detections.json`; returns the table of their numbers by class."""
    objects = [found for result in results.values() for found in result]
    write_text(out / self.folder_outputs[0], json.dumps(objects))
    counts = collections.Counter(found["category_id"] for found in objects)
    table = Table("class", "objects", title=f"{len(results)} image(s)", title_justify="left")
    for name, value in list(zip(self.classes.names, self.classes.values, strict=True))[1:]:
      table.add_row(name, f"{counts[value]:,}")
    return table

  def pictures(
    self, prediction: InstancePrediction, example: Decoded
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the image, its true objects on it, and the detected ones in the same colors."""
    image = picture(prediction.image, self.config.data.shown)
    truth, found = example["objects"], prediction.objects
    draw = functools.partial(draw_objects, names=self.classes.names, longest=_PICTURE)
    numbers = same_colors(truth, found)
    return draw(image, None), draw(image, truth), draw(image, found, numbers=numbers)

  def target_pictures(self, images: np.ndarray, targets: Targets) -> list[np.ndarray]:
    """Returns augmented images with the objects that are to be found in each."""
    drawn = []
    shown = statistics(self.config), tuple(self.config.data.shown)
    for place, normalized in enumerate(images):
      image = network_picture(normalized, *shown)
      one = jax.tree.map(lambda a, place=place: np.asarray(a[place]), targets)
      slots = Detections(
        boxes=one.frames,
        scores=one.valid,
        classes=one.classes,
        masks=one.masks / 255,
        valid=one.valid,
      )
      size = image.shape[:2]
      found = dataclasses.replace(objects_from_detections(slots, size, size), scores=None)
      drawn.append(draw_objects(image, found, self.classes.names, longest=_PICTURE))
    return drawn

  def legend(self) -> Sequence[tuple[str, Sequence[int]]]:
    """Returns nothing: every object has a color of its own."""
    return ()


def _make_inference(config: ConfigDict) -> Inference:
  return build("inference", Inference, **config.inference)


def _make_augment(config: ConfigDict) -> augment.Augment:
  arguments = dict(config.augment)
  crop = tuple(arguments.pop("crop"))
  size = crop or tuple(config.data.size)
  return build(
    "augment", augment.make_instance_augment, size=size, statistics=statistics(config), **arguments
  )
