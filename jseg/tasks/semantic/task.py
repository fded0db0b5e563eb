"""Semantic segmentation: one class per pixel of images, or per voxel of volumes."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, cast

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from jseg import augment, images, losses
from jseg.arithmetic import cdiv
from jseg.config_values import at_least, build
from jseg.crf import DenseCRF, params_from_dict, params_to_dict
from jseg.data import (
  IMAGE_SUFFIXES,
  NIFTI_SUFFIXES,
  SCIENTIFIC_SUFFIXES,
  ClassInfo,
  Dataset,
  VolumePreparation,
  check_canvas,
  flatten_volume,
  read_image,
  read_volume,
)
from jseg.data.files.channels import FIRST_SUFFIXES
from jseg.data.files.rows import StoredImage, every_nth
from jseg.data.files.stored import open_image
from jseg.data.records import Decoded
from jseg.data.survey import no_label, one_class
from jseg.metrics import ConfusionState, SemanticScores
from jseg.models import Network, fitting
from jseg.models.with_crf import WithCRF
from jseg.report import VOID_COLOR, colorize, save_calibration_plot, save_confusion_plot
from jseg.scaling import statistics
from jseg.step import Forward, LossFn, replicate
from jseg.tasks.base import Serving, Unseen, check_channels, check_size, read_scaled
from jseg.tasks.batches import make_results, training_batches
from jseg.tasks.inference import Inference
from jseg.tasks.semantic import forward
from jseg.tasks.semantic.evaluation import count_batches, count_images, count_whole_images
from jseg.tasks.semantic.forward import Targets as SemanticTargets
from jseg.tasks.semantic.predict import (
  KINDS,
  SemanticPrediction,
  SemanticPredictor,
  output_names,
)
from jseg.types import IGNORE, Array, InputError, Json, Outputs, Variables

# A canvas that holds VOC's images whole, and below Cityscapes' too.
_FOREIGN_SIZE = (513, 513)
_MOST_SHOWN = 2048  # rows and columns of a picture beside its truth
_FOREIGN_DATA: dict[int, dict[str, object]] = {
  21: {"name": "voc"},
  19: {"name": "cityscapes", "size": (1025, 2049), "eval_batch_size": 1},
}


@dataclasses.dataclass(frozen=True)
class SemanticTask:
  """Semantic segmentation, as `jseg.tasks.Task` describes it.

  Attributes:
    config: configuration of the run.
    model: network of the run.
    classes: names and colors of the classes.
  """

  metric: ClassVar[str] = "miou"
  metric_names: ClassVar[tuple[str, ...]] = ("miou", "mdice", "macc", "pixel_accuracy", "fwiou")
  title: ClassVar[str] = "mIoU"
  image_title: ClassVar[str] = "mIoU"
  predict_options: ClassVar[tuple[str, ...]] = ("confident", "keep_scores")
  evaluate_options: ClassVar[tuple[str, ...]] = ("metrics",)
  folder_outputs: ClassVar[tuple[str, ...]] = ()
  kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)

  config: ConfigDict
  model: Network
  classes: ClassInfo

  @staticmethod
  def defaults(network: type[Network]) -> dict[str, dict[str, object]]:
    """Returns the sections `augment`, `loss`, `inference`, `multilabel` and, for images, `crf`.

    Keys:
      data.patches: whether random patches of data.size are cut out of volumes of any size for
        training; otherwise volumes are shown whole, and data.size holds the largest.
      data.foreground: share of the patches that lie about a random voxel of any class but the
        first, as in nnU-Net; the others lie anywhere.
      augment.crop: size of the crops that are trained on, as data.size; () is data.size itself.
      loss.balance: "median" weighs each class by median frequency / frequency (SegNet).
      loss.class_weights: one weight per class; () for none.
      loss.border_weight: w0 of U-Net's weight map, 10 in the paper; 0 is off.
      loss.border_sigma: sigma of U-Net's weight map, in pixels.
      crf.train: whether a dense CRF is the last layer of the network, trained with it.
      multilabel.threshold: of data whose classes may overlap, the probability from which on a pixel
        is of a class: one number for all classes, or one each.
    """
    sections = {
      "augment": {"crop": (), **augment.arguments()},
      "loss": {
        **losses.arguments(),
        "balance": "none",
        "class_weights": (),
        "border_weight": 0.0,
        "border_sigma": 5.0,
      },
      "inference": dataclasses.asdict(Inference("shrink" if network.ndim == 2 else "window")),
      "multilabel": {"threshold": (0.5,)},
    }
    if network.ndim == 2:
      # As many iterations as Zheng et al. 2015 train with; the compatibility is Potts at first.
      params = params_to_dict(DenseCRF().params)
      del params["compatibility"]
      sections["crf"] = {
        "train": False,
        "train_bandwidths": False,
        "stride": 1,
        **params,
      }
    else:
      sections["data"] = {"patches": False, "foreground": 1 / 3}
    return sections

  @staticmethod
  def check_config(config: ConfigDict, network: type[Network]) -> None:
    """Raises InputError for impossible values of the task's keys."""
    check_size("data.size", config.data.size, network.ndim)
    if config.augment.crop:
      check_size("augment.crop", config.augment.crop, network.ndim)
    check_channels(config.data, network.ndim)
    if network.ndim == 3:
      _check_patches(config)
      _preparation(config)
    _make_augment(config)
    _make_loss(config)
    build("inference", _make_inference(config).check, config.data.size)
    _check_weights(config.loss, network.ndim)
    thresholds = config.multilabel.threshold
    if not thresholds or not all(isinstance(t, float) and 0 < t < 1 for t in thresholds):
      raise InputError(
        f"multilabel.threshold: {thresholds} must be numbers above 0 and below 1, one for all "
        "classes or one each"
      )

  @staticmethod
  def wrap(network: Network, config: ConfigDict) -> Network:
    """Returns the network with a dense CRF behind it where the configuration asks for one."""
    if "crf" not in config or not config.crf.train:
      return network
    values = dict(config.crf)
    del values["train"]
    own = {name: values.pop(name) for name in ("train_bandwidths", "stride")}
    layer = DenseCRF(build("crf", params_from_dict, values), **own)
    return WithCRF(
      num_classes=network.num_classes,
      network=network,
      crf=layer,
      dtype=network.dtype,
      param_dtype=network.param_dtype,
    )

  def check_data(self, dataset: Dataset) -> None:
    """Refuses a data set and a configuration that aren't of the same kind.

    Raises:
      InputError: volumes for a network of images or the reverse, volumes that the canvas can't
        hold, objects without labels, masks that teach or measure nothing, or not one class weight
        per class.
    """
    self._check_kind(dataset)
    config = self.config
    train, validation = config.data.train_split, config.data.eval_split
    problem = one_class(train, dataset.pixel_counts(train), dataset.classes.label_names)
    if problem := problem or no_label(validation, dataset.pixel_counts(validation)):
      raise problem
    if dataset.ndim == 3 and not config.data.patches:
      for split in (train, validation):
        check_canvas(dataset.max_size(split), tuple(config.data.size))
    self._check_class_weights(dataset)

  def _check_kind(self, dataset: Dataset) -> None:
    """Refuses volumes for a network of images or the reverse, and objects without labels."""
    config, network = self.config, self.config.model.name
    kinds = {2: "images", 3: "volumes"}
    if dataset.ndim != self.model.ndim:
      others = ", ".join(fitting(task="semantic", ndim=dataset.ndim))
      raise InputError(
        f"model.name: {network} takes {kinds[self.model.ndim]}, but {config.data.name} holds "
        f"{kinds[dataset.ndim]}; choose from {others}"
      )
    if dataset.scientific:
      self._check_scientific()
    if not dataset.has_labels:
      raise InputError(
        f"model.name: {network} learns the class of every pixel, but {config.data.name} "
        "tells objects only; choose mask_rcnn, or bring masks of classes"
      )

  def _check_class_weights(self, dataset: Dataset) -> None:
    """Refuses other than one class weight per class."""
    weights = self.config.loss.class_weights
    if weights and len(weights) != len(dataset.classes.names):
      raise InputError(
        f"loss.class_weights: {len(weights)} numbers, but {self.config.data.name} has "
        f"{len(dataset.classes.names)} classes ({', '.join(dataset.classes.names)}); give one each"
      )

  def _check_scientific(self) -> None:
    """Refuses what is for colors of 8 bits alone."""
    _make_augment(self.config)
    layer = "crf" in self.config and self.config.crf.train
    for key, on in (("crf.train", layer), ("inference.crf", self.config.inference.crf)):
      if on:
        raise InputError(
          f"{key}: a CRF compares colors, and scientific images have none; leave it at False"
        )
    if self.model.colors_only:
      raise InputError(
        f"model.name: {self.config.model.name} is made for colors and gray of 8 bits, and the "
        f"images of {self.config.data.name} are scientific ones; choose another network"
      )

  def batches(self, dataset: Dataset, seed: int) -> grain.DatasetIterator:
    """Returns endless training batches; see `jseg.data.train_iterator`."""
    loss = self.config.loss
    border = (loss.border_weight, loss.border_sigma) if loss.border_weight else None
    patches = self.model.ndim == 3 and self.config.data.patches
    foreground = self.config.data.foreground if patches else None
    return training_batches(self.config, dataset, seed, border=border, foreground=foreground)

  def forward(self, *, without_network: bool = False) -> Forward:
    """Returns the training pass; its targets are labels and, with a weight map, weights."""
    network = Unseen(self.model) if without_network else self.model
    return forward.make_forward(network, _make_augment(self.config))

  def losses(self, dataset: Dataset) -> LossFn:
    """Returns the configured loss of the logits, "main", and of each auxiliary output."""
    return forward.make_losses(_make_loss(self.config), self._class_weights(dataset))

  def loss_weights(self) -> Mapping[str, float]:
    """Returns the weights of the auxiliary outputs' losses."""
    return dict(self.config.aux_weights)

  def _class_weights(self, dataset: Dataset) -> Array | None:
    """Weight of each class in the loss: float32 [k], or None where all weigh the same."""
    loss = self.config.loss
    if loss.balance == "median":
      weights = dataset.median_frequency_weights(self.config.data.train_split)
      return jnp.asarray(weights, jnp.float32)
    return jnp.asarray(loss.class_weights, jnp.float32) if loss.class_weights else None

  def counts(self, outputs: Outputs, targets: SemanticTargets) -> dict[str, Array]:
    """Returns the confusion matrix of a training batch, at the resolution of the crop."""
    return forward.training_counts(outputs, targets)

  def training_metrics(self, counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the mIoU of training batches, from their summed confusion matrix."""
    return {"miou": ConfusionState(counts["confusion"]).compute().miou}

  def evaluator(
    self, dataset: Dataset, split: str, *, calibrate: bool = False
  ) -> Callable[[Variables], SemanticScores]:
    """Returns `evaluate(variables)`, exact at the images' own size.

    Args:
      dataset: data set of the run.
      split: split of the data set.
      calibrate: whether it measures calibration too.
    """
    self._check_measured()
    num_images, num_classes = len(dataset.source(split)), len(self.classes.names)
    if not self._shows_whole(dataset, split):
      predict = self.predictor(confident=calibrate)

      def evaluate_images(variables: Variables) -> SemanticScores:
        local = jax.tree.map(lambda x: x.addressable_data(0), variables)
        return count_images(predict, local, dataset, split)

      return evaluate_images
    prepare = functools.partial(images.prepare, statistics=statistics(self.config))
    count = functools.partial(forward.count_batch, calibrate=calibrate)
    step = forward.make_eval_step(self.model, prepare, count)
    canvas = dataset.max_size(split)
    results = make_results(self.config, dataset, split, step, label_size=canvas)

    def evaluate_batches(variables: Variables) -> SemanticScores:
      return count_batches(results(variables), num_images, num_classes)

    return evaluate_batches

  def _check_measured(self) -> None:
    """Raises InputError if what the protocol predicts can't be compared with labels."""
    build("inference", _make_inference(self.config).check_measured)

  def _shows_whole(self, dataset: Dataset, split: str) -> bool:
    """Whether the network sees every image of a split once, and all of it."""
    protocol = _make_inference(self.config)
    if dataset.ndim == 2:
      return protocol.one_pass and not protocol.crf
    fits = all(n <= m for n, m in zip(dataset.max_size(split), self.config.data.size, strict=True))
    return fits and protocol.flip == "none"

  def measure(
    self,
    variables: Variables,
    dataset: Dataset,
    split: str,
    *,
    metrics: Sequence[str] = (),
  ) -> tuple[SemanticScores, Json]:
    """Returns the metrics of a split with its calibration, and those that need whole images.

    Args:
      variables: parameters and statistics of the network.
      dataset: data set of the run.
      split: split of the data set.
      metrics: names of further metrics, as `jseg.metrics.create` takes them.

    Raises:
      InputError: no such metric, the voxels' spacing isn't known, or the protocol's masks can't be
        compared with labels.
    """
    self._check_measured()
    if metrics or self.config.inference.crf:
      predict = self.predictor(confident=True)
      return count_whole_images(predict, variables, dataset, split, metrics)
    return self.evaluator(dataset, split, calibrate=True)(replicate(variables)), {}

  def save_plots(self, scores: SemanticScores, path: pathlib.Path) -> None:
    """Writes PATH_confusion.png, and PATH_calibration.png of what was measured."""
    picture = path.with_name(f"{path.name}_confusion.png")
    save_confusion_plot(scores, self.classes.names, picture)
    if scores.calibration is not None:
      picture = path.with_name(f"{path.name}_calibration.png")
      save_calibration_plot(scores.calibration, picture)

  @property
  def suffixes(self) -> Collection[str]:
    """File name endings of images, of scientific images, or of volumes.

    Of volumes NIfTI's, and those of the first of a file a channel.
    """
    if self.config.data.low:
      return SCIENTIFIC_SUFFIXES
    if self.model.ndim == 2:
      return IMAGE_SUFFIXES
    return (*(FIRST_SUFFIXES if self.config.data.channels > 1 else ()), *NIFTI_SUFFIXES)

  def read(self, path: pathlib.Path) -> np.ndarray | StoredImage:
    """Reads an image, or for a network of volumes a NIfTI volume.

    Scientific images are scaled by the run's own ranges. Of large TIFF images that are shown in
    windows, rows are read when they are needed.

    Raises:
      InputError: it can't be read, or is of the other kind.
    """
    network, is_volume = self.config.model.name, path.name.lower().endswith(NIFTI_SUFFIXES)
    if is_volume and self.model.ndim == 2:
      raise InputError(
        f"{path} is a volume (NIfTI), but {network} takes images; use a run of a network of "
        f"volumes ({', '.join(fitting(task='semantic', ndim=3))}), or save its slices as PNG"
      )
    if not is_volume and self.model.ndim == 3:
      raise InputError(
        f"{path} is no volume, but {network} takes volumes as NIfTI ({', '.join(NIFTI_SUFFIXES)}); "
        "convert it, or use a run of a network of images"
      )
    by_rows = _make_inference(self.config).by_rows
    if self.config.data.low:
      return read_scaled(self.config.data, path, by_rows=by_rows)
    if not is_volume:
      return open_image(path) if by_rows else read_image(path)
    return read_volume(path, _preparation(self.config), join=self.config.data.channels > 1)

  def predictor(
    self,
    *,
    confident: bool = False,
    keep_scores: bool = False,
  ) -> SemanticPredictor:
    """Returns the function that segments single images; see `SemanticPredictor`."""
    return self._make_predictor(confident=confident, keep_scores=keep_scores)

  def _make_predictor(self, **options: Any) -> SemanticPredictor:
    """Makes a predictor of the run's settings."""
    data = self.config.data
    return SemanticPredictor(
      self.model,
      self.classes,
      data.size,
      data.channels,
      inference=_make_inference(self.config),
      preparation=_preparation(self.config),
      batch_size=data.eval_batch_size,
      statistics=statistics(self.config),
      bands=tuple(data.shown),
      **options,
    )

  def serving(self) -> Serving:
    """Returns images uint8 [b h w c] to logits; volumes float32 [b d h w c], normalized.

    Scientific images are float32 [b h w c] as they are stored; scaling is part of the function.
    """
    volumes, keys = self.model.ndim == 3, self.config.data

    def logits(variables: Variables, image: Array) -> Array:
      if keys.low:
        shape = (1, 1, 1, keys.channels)
        low, high = (jnp.float32(ends).reshape(shape) for ends in (keys.low, keys.high))
        image = ((image - low) * (255 / (high - low))).clip(0, 255)
      x = image if volumes else images.normalize(image, statistics(self.config))
      return cast(Outputs, self.model.apply(variables, x, train=False)).logits

    return Serving(logits, "float32" if volumes or keys.low else "uint8", keys.channels)

  @staticmethod
  def foreign_data(num_classes: int) -> dict[str, object]:
    """Returns the data set whose classes a head scores, by their number, or a folder."""
    return {"name": "folder", "size": _FOREIGN_SIZE, **_FOREIGN_DATA.get(num_classes, {})}

  def outputs(self, stem: str, write: Sequence[str] = ()) -> list[str]:
    """Returns the names of mask, overlay and legend, or of what else is to be written."""
    return output_names(stem, self.model.ndim, write)

  def result(self, prediction: SemanticPrediction, file: str) -> list[float]:
    """Returns each class's share of the pixels."""
    del file
    return list(prediction.shares().values())

  def report(self, results: Mapping[str, Sequence[float]], out: pathlib.Path) -> Table:
    """Returns the table of each class's mean share of the pixels."""
    del out
    names, count = self.classes.names, len(results)
    means = np.reshape(list(results.values()), (-1, len(names))).sum(0) / max(count, 1)
    table = Table("class", "mean share", title=f"{count} image(s)", title_justify="left")
    for name, share in zip(names, means, strict=True):
      table.add_row(name, f"{100 * share:.1f} %")
    return table

  def pictures(
    self, prediction: SemanticPrediction, example: Decoded
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image, truth and prediction in the classes' colors; of volumes, the middle slice."""
    found = prediction.image, example["label"], prediction.mask
    # More pixels than a sample or a page of the worst has would only fill memory.
    step = cdiv(max(prediction.mask.shape), _MOST_SHOWN) if prediction.mask.ndim == 2 else 1
    image, truth, mask = flatten_volume(*(every_nth(part, step) for part in found))
    palette = self.classes.palette
    image = images.picture(image, self.config.data.shown)
    image = np.broadcast_to(image, (*image.shape[:2], 3))
    return image, colorize(truth, palette), colorize(mask, palette)

  def target_pictures(self, images: np.ndarray, targets: SemanticTargets) -> list[np.ndarray]:
    """Returns augmented images under their classes' colors, void gray; of volumes a slice."""
    return [self._target_picture(*pair) for pair in zip(images, targets.label, strict=True)]

  def _target_picture(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    if image.ndim == 3:
      image = images.network_picture(image, statistics(self.config), self.config.data.shown)
    image, label = flatten_volume(image, label.astype(np.uint8))
    margins = [n - m for n, m in zip(image.shape, label.shape, strict=False)]  # unpadded networks
    label = np.pad(label, [(m // 2, m - m // 2) for m in margins], constant_values=IGNORE)
    return self._colored(image, label)

  def _colored(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """A picture under the colors of its label."""
    return (0.5 * image + 0.5 * colorize(label, self.classes.palette)).round().astype(np.uint8)

  def legend(self) -> list[tuple[str, Sequence[int]]]:
    """Returns name and color of each class, and of void."""
    names, palette = self.classes.names, self.classes.palette.tolist()
    return [*zip(names, palette, strict=True), ("void", VOID_COLOR)]


def _make_augment(config: ConfigDict) -> augment.Augment:
  arguments = dict(config.augment)
  crop = tuple(arguments.pop("crop"))
  size = crop or tuple(config.data.size)
  return build(
    "augment", augment.make_augment, size=size, statistics=statistics(config), **arguments
  )


def _make_inference(config: ConfigDict) -> Inference:
  return build("inference", Inference, **config.inference)


def _preparation(config: ConfigDict) -> VolumePreparation:
  """What the run's data set does to its volumes, and so is to be done to others."""
  fields = {field.name for field in dataclasses.fields(VolumePreparation)}
  options = config.data.options if config.data.name == "volumes" else {}
  return build(
    "data.options", VolumePreparation, **{k: v for k, v in options.items() if k in fields}
  )


def _check_patches(config: ConfigDict) -> None:
  """Raises InputError for impossible values of the keys of patches."""
  share, crop, size = config.data.foreground, config.augment.crop, config.data.size
  if not 0 <= share <= 1:
    raise InputError(
      f"data.foreground: {share} must be a share of the patches, at least 0 and at most 1"
    )
  if config.data.patches and any(n > m for n, m in zip(crop, size, strict=False)):
    raise InputError(
      f"augment.crop: {tuple(crop)} must not exceed the patches that are cut, data.size "
      f"{tuple(size)}"
    )


def _make_loss(config: ConfigDict) -> losses.Loss:
  arguments = {name: config.loss[name] for name in losses.arguments()}
  return build("loss", losses.make_loss, **arguments)


def _check_weights(loss: ConfigDict, ndim: int) -> None:
  """Raises InputError for impossible weights of classes and pixels."""
  if loss.balance not in ("none", "median"):
    raise InputError(f"loss.balance: {loss.balance!r} is unknown; choose none or median")
  if loss.balance != "none" and loss.class_weights:
    raise InputError("loss.balance and loss.class_weights both give weights; leave one out")
  if not all(isinstance(w, int | float) and w >= 0 for w in loss.class_weights):
    raise InputError(
      f"loss.class_weights: {loss.class_weights} must be numbers of at least 0, one per class"
    )
  at_least({"loss.border_weight": loss.border_weight}, 0)
  if loss.border_sigma <= 0:
    raise InputError(f"loss.border_sigma: {loss.border_sigma} must be above 0, in pixels")
  if loss.border_weight and ndim == 3:
    raise InputError("loss.border_weight: the weight map is for images; set it to 0 for volumes")
  weighted = loss.class_weights or loss.balance != "none" or loss.border_weight
  if weighted and not losses.takes_weights(loss.name):
    raise InputError(f"loss.name: {loss.name} takes no weights; use cross_entropy+dice")
