"""The objects in one image of any size."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import jax
import numpy as np
from PIL import Image

from jseg.console import part_progress
from jseg.data import ClassInfo, Objects, as_channels, resize_and_pad
from jseg.images import Statistics, picture, prepare
from jseg.models import Network
from jseg.report import PNG, draw_objects, save_instance_map
from jseg.step import LocalDevices
from jseg.tasks.inference import GRIDS, Inference
from jseg.tasks.instance.views import Found, Frame, View, find, merge
from jseg.tasks.windows import gaussian_weights, overlapping
from jseg.types import Array, Detections, InputError, Variables


@dataclasses.dataclass(frozen=True)
class InstancePrediction:
  """The objects found in one image, the best first, at its own size.

  Attributes:
    image: uint8 [h w 3] or [h w 1], as given; a scientific image float32 [h w c] in 0..255.
    objects: the detected objects.
    info: names and colors of the classes.
    bands: of a scientific image, the channels that pictures show (`jseg.images.picture`).
  """

  image: np.ndarray
  objects: Objects
  info: ClassInfo
  bands: tuple[int, ...] = ()

  @property
  def boxes(self) -> np.ndarray:
    """Boxes float32 [n 4], (y0 x0 y1 x1) in pixels."""
    return self.objects.boxes

  @property
  def scores(self) -> np.ndarray:
    """Probability of each object's class, float32 [n]."""
    assert self.objects.scores is not None, "detected objects have scores"
    return self.objects.scores

  @property
  def classes(self) -> np.ndarray:
    """Class of each object, int32 [n], 1 to k - 1."""
    return self.objects.classes

  @property
  def names(self) -> list[str]:
    """Name of each object's class, n strings."""
    return [self.info.names[i] for i in self.classes]

  @functools.cached_property
  def masks(self) -> np.ndarray:
    """Masks, bool [n h w]; made when first asked for, as they are large."""
    masks = [self.objects.mask(i) for i in range(len(self.objects))]
    return np.stack(masks) if masks else np.zeros((0, *self.image.shape[:2]), bool)

  def overlay(self, least_score: float = 0.5) -> np.ndarray:
    """Returns the image with masks, boxes, names and scores, uint8 [H W 3].

    Small images are enlarged.

    Args:
      least_score: objects with a lower score are not drawn.
    """
    image = picture(self.image, self.bands)
    return draw_objects(image, self.objects, self.info.names, least_score=least_score)

  def save(
    self,
    out: str | pathlib.Path,
    stem: str,
    like: str | pathlib.Path | None = None,
    *,
    write: Sequence[str] = (),
    source_ids: bool = False,
  ) -> list[pathlib.Path]:
    """Writes STEM.png, the instance map, and STEM_overlay.png.

    Args:
      out: folder to write to; made if it isn't there.
      stem: beginning of the files' names.
      like: not needed.
      write: what is written, names in `KINDS`; empty: both.
      source_ids: not needed.

    Returns:
      Their paths. Pixels of the map (16 bits) hold the number of their object, best first, from 1.
    """
    del like, source_ids
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write = write or tuple(KINDS)
    paths = [out / name for name in output_names(stem, write)]
    for kind, path in zip(write, paths, strict=True):
      if kind == "mask":
        save_instance_map(self.objects, path)
      else:
        Image.fromarray(self.overlay()).save(path, **PNG)
    return paths


KINDS = {"mask": "", "overlay": "_overlay"}
"""What can be written of a prediction, and what its file's name has beside the image's."""


def output_names(stem: str, write: Sequence[str] = ()) -> list[str]:
  """Returns the names of the files that a prediction of this stem is saved to; by default both."""
  return [f"{stem}{KINDS[kind]}.png" for kind in write or KINDS]


class InstancePredictor:
  """Finds the objects in images of any size: `predictor(variables, image)`.

  Where the protocol shrinks, images larger than the network's canvas are shrunk to fit it, smaller
  ones padded, as in training; boxes and masks are brought back to the image's own size. Otherwise
  images keep their size and are worked through in windows, and what several windows have found of
  an object is brought together (`jseg.tasks.instance.views`). One program serves all sizes.

  Args:
    model: network of objects.
    classes: names and colors of the classes.
    size: canvas (height, width) of the network.
    channels: 3 (RGB) or 1 (gray).
    inference: how the network looks at an image.
    batch_size: windows and mirror images that it sees at a time, over all local devices.
    short_side: pixels that the shorter side of images is brought to; see
      `jseg.data.resize_and_pad`.
    statistics: of scientific images, mean and deviation of each channel; None: images are colors.
    bands: of scientific images, the channels that pictures show.

  Raises:
    InputError: the protocol is for classes of pixels (`Inference.check_objects`).
  """

  def __init__(
    self,
    model: Network,
    classes: ClassInfo,
    size: Sequence[int],
    channels: int = 3,
    *,
    inference: Inference | None = None,
    batch_size: int = 1,
    short_side: int = 0,
    statistics: Statistics | None = None,
    bands: Sequence[int] = (),
  ):
    self._classes = classes
    self._size = tuple(int(n) for n in size)
    self._channels = channels
    self._inference = inference or Inference()
    self._inference.check_objects(short_side)
    self._short_side = short_side
    self._scaled, self._bands = statistics is not None, tuple(bands)
    self._devices = LocalDevices(batch_size)
    gaussian = self._inference.blend == "gaussian"
    self._weights = gaussian_weights(self._size) if gaussian else np.ones(self._size, np.float32)

    def detect(variables: Variables, image: Array, size: Array) -> Detections:
      prepared = prepare(image, size, statistics)
      return cast(Detections, model.apply(variables, prepared, size=size, train=False))

    self._detect = jax.jit(detect)
    self._detect_on_devices = self._devices.map(detect)

  def __call__(self, variables: Variables, image: np.ndarray) -> InstancePrediction:
    """Finds the objects of one image.

    Args:
      variables: parameters and statistics of the network.
      image: uint8 [h w 3] (RGB), [h w 4] (RGBA) or [h w] (gray).

    Raises:
      InputError: it is of another type or shape.
    """
    image = self._as_shown(image)
    views = self._views(image.shape[:2])
    found = part_progress(self._found(variables, image, views), "windows", len(views))
    return self._merged(image, found)

  @property
  def together(self) -> int:
    """Images that `batch` is given at the most: one where each is shown in windows."""
    if self._inference.mode != "shrink":
      return 1
    return max(1, self._devices.batch_size // len(self._inference.flipped_axes(2)))

  def batch(
    self, variables: Variables, images: Sequence[np.ndarray], filled: int = 1
  ) -> list[Callable[[], InstancePrediction]]:
    """Shows several images to the network at once (`jseg.tasks.base.Predictor.batch`)."""
    images = [self._as_shown(image) for image in images]
    views = [self._views(image.shape[:2]) for image in images]
    per = len(views[0])
    count = self._devices.round_up(per * max(filled, len(images)))
    canvases = np.zeros((count, *self._size, self._channels), images[0].dtype)
    sizes = np.ones((count, 2), np.int32)
    for i, (image, own) in enumerate(zip(images, views, strict=True)):
      part = slice(per * i, per * (i + 1))
      canvases[part], sizes[part] = self._show(image, own, per)
    detected = self._detect_on_devices(self._devices.replicate(variables), canvases, sizes)()

    def find_in(index: int) -> InstancePrediction:
      part = slice(per * index, per * (index + 1))
      own = jax.tree.map(lambda a: a[part], detected)
      image = images[index]
      return self._merged(image, _objects(views[index], sizes[part], own, image.shape[:2]))

    return [functools.partial(find_in, index) for index in range(len(images))]

  def _as_shown(self, image: np.ndarray) -> np.ndarray:
    """The image in the channels of the network. Raises InputError if it is of another kind."""
    image = as_channels(image, self._channels, scaled=self._scaled)
    if image.ndim != 3:
      raise InputError(f"this network takes images, not an array of shape {image.shape}")
    return image

  def _merged(
    self, image: np.ndarray, found: Iterable[tuple[View, list[Found]]]
  ) -> InstancePrediction:
    """The prediction of what the views of an image have found."""
    objects = merge(found, image.shape[:2])
    return InstancePrediction(image, objects, self._classes, self._bands)

  def _views(self, shape: Sequence[int]) -> list[View]:
    """All that the network is shown of an image, by the upper edges."""
    parts: list[tuple[Frame, np.ndarray]] = []
    if self._inference.mode == "shrink":
      height, width = shape
      parts.append(((0, 0, height, width), np.broadcast_to(np.float32(1), (height, width))))
    else:
      for window in overlapping(shape, self._size, self._inference.overlap, GRIDS[2]):
        y, x = window.place
        parts.append(((y.start, x.start, y.stop, x.stop), self._weights[window.inner]))
    flips = self._inference.flipped_axes(2)
    return [View(frame, weights, flipped) for frame, weights in parts for flipped in flips]

  def _found(
    self, variables: Variables, image: np.ndarray, views: Sequence[View]
  ) -> Iterator[tuple[View, list[Found]]]:
    """Views and their objects; the host lags a batch behind the devices."""
    objects = functools.partial(_objects, shape=image.shape[:2])
    if len(views) == 1:  # which further devices can't help with
      images, sizes = self._show(image, views, 1)
      yield from objects(views, sizes, jax.device_get(self._detect(variables, images, sizes)))
      return
    variables = self._devices.replicate(variables)
    pending = None
    for part in self._devices.batches(views):
      images, sizes = self._show(image, part, self._devices.round_up(len(part)))
      current = part, sizes, self._detect_on_devices(variables, images, sizes)
      if pending is not None:
        yield from objects(*pending[:2], pending[2]())
      pending = current
    if pending is not None:
      yield from objects(*pending[:2], pending[2]())

  def _show(
    self, image: np.ndarray, views: Sequence[View], count: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the network is shown: `count` canvases, and int32 [count 2], what views cover of them.

    Those beyond the last view are empty.
    """
    images = np.zeros((count, *self._size, self._channels), image.dtype)
    sizes = np.ones((count, 2), np.int32)
    for i, view in enumerate(views):
      y0, x0, y1, x1 = view.frame
      shown = np.ascontiguousarray(np.flip(image[y0:y1, x0:x1], view.flipped))  # as OpenCV asks
      images[i], sizes[i] = resize_and_pad(shown, self._size, self._short_side)
    return images, sizes


def _objects(
  views: Sequence[View], sizes: np.ndarray, detected: Detections, shape: tuple[int, int]
) -> Iterator[tuple[View, list[Found]]]:
  """Views of an image of this shape and their objects, from what was detected in a batch."""
  for i, view in enumerate(views):
    one = jax.tree.map(lambda a, i=i: a[i], detected)
    yield view, find(view, one, sizes[i].tolist(), shape)
