"""From examples to batches of one static size: Grain shuffles, threads decode, and it resumes.

A batch holds numpy arrays; see `train_iterator` and `eval_batches` for their names and shapes.
Everything works for images [h w c] and for volumes [d h w c]: sizes then have three numbers.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import cv2
import grain
import numpy as np

from jseg.arithmetic import cdiv
from jseg.data.border import border_weights
from jseg.data.patches import cut_patch
from jseg.data.records import Decoded
from jseg.data.targets import make_targets
from jseg.types import IGNORE, Batch, InputError

Size = tuple[int, ...]


class RandomAccess(Protocol):
  """Decoded examples by position, such as `Dataset.source` returns."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Decoded: ...


def train_iterator(
  source: RandomAccess,
  *,
  size: Size,
  batch_size: int,
  seed: int,
  channels: int = 3,
  border: tuple[float, float] | None = None,
  objects: tuple[int, int] | None = None,
  short_side: int = 0,
  scaled: bool = False,
  foreground: float | None = None,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
) -> grain.DatasetIterator:
  """Endless training batches, shuffled anew every epoch.

  The stream of examples, and of patches cut out of them, depends on source and seed alone. Each
  process takes its part of every global batch, all parts of one size and in the order of the
  processes, so that global batch i is the same for any number of processes. `get_state` and
  `set_state` of the iterator resume it.

  Args:
    source: random access to examples: `image` uint8 [h w c], `label` uint8 [h w]; of volumes,
      `image` float32 [d h w c], normalized, and `label` uint8 [d h w].
    size: (H, W) of the canvas. Larger images are shrunk to fit with their aspect kept, smaller
      ones are only padded. (D, H, W) for volumes, which are never shrunk: it holds the largest.
    batch_size: examples in a global batch, over all processes.
    seed: seed of the shuffle.
    channels: 3 (RGB) or 1 (gray), to which images are converted; or those that volumes have.
    border: weight and sigma of `border_weights`, for images; None is without.
    objects: (n, m), to train on the up to n largest objects per image, with masks of m x m cells.
    short_side: pixels that the shorter side is brought to, as for `resize_and_pad`; with `objects`.
    scaled: images are scientific ones, which were brought to 0..255: float32 [h w channels].
    foreground: share of the patches of volumes that lie about foreground, each of them cut out of a
      volume of any size (see `jseg.data.patches`); None: volumes are shown whole.
    process_index: index of this process.
    process_count: number of processes; divides batch_size.
    threads: number of threads that read and decode.

  Returns:
    Iterator over dicts with b = batch_size / process_count: `image` uint8 [b H W channels] and
    `label` uint8 [b H W], at the top left of the canvas (elsewhere 0 and IGNORE); `size` int32
    [b 2], the rows and columns covered. Of volumes: `image` float32 [b D H W channels], `label`
    uint8 [b D H W], `size` int32 [b 3]. With `border` also `weight` float32 [b H W]. With
    `objects` there are the fields of `jseg.types.Targets` in place of `label`.

  Raises:
    InputError: the source is empty or the batch cannot be shared out; from `next`, if an
      example does not fit the canvas or the channels (see `resize_and_pad` and `as_channels`).
  """
  local = _local_batch(batch_size, process_count, size, channels, scaled)
  if not len(source):
    raise InputError("the training split is empty; add images to it")
  examples = _shuffled(source, seed)
  if foreground is not None:
    # Before the processes part: a patch is drawn by the example's place in the whole stream.
    cut = functools.partial(cut_patch, size=size, foreground=foreground, seed=seed)
    examples = examples.map_with_index(cut)
  examples = _share(examples, local, process_index, process_count)
  if objects is None:
    make = functools.partial(
      _train_example, size=size, channels=channels, border=border, scaled=scaled
    )
  else:
    make = functools.partial(
      _train_objects,
      size=size,
      channels=channels,
      objects=objects,
      short_side=short_side,
      scaled=scaled,
    )
  # The stream has no end to drop; Grain's length of a batched one overflows otherwise.
  batches = examples.map(make).batch(local, drop_remainder=True)
  return iter(batches.to_iter_dataset(_read_options(threads)))


def training_indices(count: int, *, batch_size: int, seed: int, batch: int) -> list[int]:
  """The examples of one batch of `train_iterator`.

  Args:
    count: number of examples in the source.
    batch_size: examples in a global batch.
    seed: seed of the shuffle.
    batch: number of the global batch, from 0.

  Returns:
    Their positions in the source, in the order of the global batch.
  """
  stream = _shuffled(range(count), seed)
  return [stream[batch * batch_size + i] for i in range(batch_size)]


def eval_batches(
  source: RandomAccess,
  *,
  size: Size,
  label_size: Size | None,
  batch_size: int,
  channels: int = 3,
  short_side: int = 0,
  scaled: bool = False,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
) -> "EvalBatches":
  """One pass over a split, every example exactly once, with labels at original resolution.

  Args:
    source: random access to examples, as for `train_iterator`.
    size: (H, W) of the image canvas, or (D, H, W), as in training.
    label_size: (LH, LW) or (LD, LH, LW) of the label canvas: the largest of the split. None leaves
      labels out, where the truth is `source[index]["objects"]`.
    batch_size: examples in a global batch.
    channels: channels of the images, as for `train_iterator`.
    short_side: pixels that the shorter side is brought to, as for `train_iterator`.
    scaled: images are scientific ones, as for `train_iterator`.
    process_index: index of this process.
    process_count: number of processes; all yield the same number of batches.
    threads: number of threads that read and decode.

  Returns:
    Sized iterable over dicts: `image`, `size` as in training; `label` uint8 [b LH LW], top left,
    IGNORE elsewhere; `label_size` int32 [b 2]; `index` int32 [b], the position in the split. The
    last batch is filled up with examples of index -1 that are IGNORE all over and of size (1, 1).
    Of volumes, `label` is [b LD LH LW] and sizes are [b 3].

  Raises:
    InputError: as in `train_iterator`, but not for empty sources.
  """
  local = _local_batch(batch_size, process_count, size, channels, scaled)
  padded = cdiv(len(source), batch_size) * batch_size
  indices = [i if i < len(source) else -1 for i in range(padded)]
  make = functools.partial(
    _eval_example,
    source=source,
    size=size,
    label_size=label_size,
    channels=channels,
    short_side=short_side,
    scaled=scaled,
  )
  examples = _share(grain.MapDataset.source(indices), local, process_index, process_count)
  return EvalBatches(examples.map(make).batch(local), threads)


class EvalBatches:
  """A sized iterable of evaluation batches; each walk begins anew."""

  def __init__(self, batches: grain.MapDataset, threads: int):
    self._batches, self._threads = batches, threads

  def __len__(self) -> int:
    return len(self._batches)

  def __iter__(self) -> Iterator[Batch]:
    return iter(self._batches.to_iter_dataset(_read_options(self._threads)))


def resize_and_pad(image: np.ndarray, size: Size, short_side: int = 0) -> tuple[np.ndarray, Size]:
  """Puts an image on a canvas; larger images are shrunk, with their aspect kept.

  Args:
    image: uint8 [h w c], or a volume, float32 [d h w c].
    size: (H, W) of the canvas, or (D, H, W).
    short_side: pixels that the shorter side of every image is brought to, as far as the canvas
      allows; 0: images that fit stay as they are.

  Returns:
    (uint8 [H W c], (rows, columns)): the canvas, 0 where the image does not reach, and what the
    image covers from the top left. Of a volume, (float32 [D H W c], (slices, rows, columns)).

  Raises:
    InputError: a volume is larger than the canvas, or the size has another number of axes.
  """
  if image.ndim != len(size) + 1:
    kind, axes = ("images", "two") if image.ndim == 3 else ("volumes", "three")
    raise InputError(f"data.size: {size} must be {axes} numbers, because the data are {kind}")
  if len(size) == 3:
    check_canvas(image.shape[:3], size)
    return _pad(image, size, 0), image.shape[:3]
  covered = _fitted(image.shape[:2], size, short_side)
  return _pad(resize(image, covered), size, 0), covered


def resize(image: np.ndarray, size: Size, *, linear: bool = False) -> np.ndarray:
  """Brings an image [h w c] to another size.

  Args:
    image: uint8 or float32 [h w c].
    size: (h', w').
    linear: interpolates to smaller sizes too, where otherwise means over areas are taken.
  """
  if image.shape[:2] == size:
    return image
  area = size[0] < image.shape[0] and not linear
  method = cv2.INTER_AREA if area else cv2.INTER_LINEAR
  # OpenCV drops the axis of a single channel.
  return cv2.resize(image, size[::-1], interpolation=method).reshape(*size, -1)


def check_canvas(largest: Size, size: Size) -> None:
  """Refuses a canvas (D, H, W) that is too small for volumes of the size `largest`.

  Raises:
    InputError: naming both sizes and the one to use; volumes are never shrunk.
  """
  if any(n > m for n, m in zip(largest, size, strict=True)):
    enough = tuple(max(n, m) for n, m in zip(largest, size, strict=True))
    raise InputError(
      f"data.size: {size} cannot hold a volume of {largest} voxels (depth, height, width), and "
      f"voxels keep their size; raise data.size to {enough} or more, and crop by augment.crop, or "
      "train on patches of data.size (data.patches=True)"
    )


def as_channels(image: np.ndarray, channels: int, *, scaled: bool = False) -> np.ndarray:
  """Converts an image to the number of channels that a network takes.

  Args:
    image: uint8 [h w], [h w 1] (gray), [h w 3] (RGB) or [h w 4] (RGBA; alpha is dropped); a
      volume, float32 [d h w channels]; or a scientific image that was brought to 0..255, float32
      [h w channels].
    channels: 3 (RGB) or 1 (gray); of a volume or scientific image, those that it has.
    scaled: it is a scientific image.

  Returns:
    uint8 [h w channels]; volumes and scientific images as they are.

  Raises:
    InputError: the array is neither, or the volume has another number of channels.
  """
  if not all(hasattr(image, name) for name in ("dtype", "ndim", "shape")):
    raise InputError(
      f"a {type(image).__name__} is no image; give an array, uint8 [h w 3], such as "
      "jseg.data.read_image(path) returns"
    )
  if image.ndim == 4:
    if image.shape[3] != channels:
      raise InputError(
        f"data.channels: {channels}, but a volume has {image.shape[3]}; "
        f"set data.channels to {image.shape[3]}"
      )
    return image
  if scaled:
    _check_scaled(image, channels)
    return image
  if channels not in (1, 3):
    raise InputError(
      f"data.channels: {channels}, but the images are gray or RGB; scientific images have a "
      "scaling, which a training on them finds (data.scaling)"
    )
  if image.ndim == 2:
    image = image[..., None]
  if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.dtype != np.uint8:
    fix = ""
    if image.dtype != np.uint8:
      fix = ". Bring other types to 0..255: (255 * image).round().astype(numpy.uint8) of 0..1"
    raise InputError(
      f"an image of shape {image.shape} and type {image.dtype} is none; give uint8 [h w], "
      f"[h w 3] (RGB) or [h w 4] (RGBA){fix}"
    )
  image = image[..., :3]
  if image.shape[2] == channels:
    return image
  if channels == 1:
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None]
  return np.repeat(image, 3, -1)


def _check_scaled(image: np.ndarray, channels: int) -> None:
  """Refuses a scientific image of other channels, or one that isn't in 0..255."""
  if image.ndim != 3 or image.dtype != np.float32:
    raise InputError(
      f"an image of shape {image.shape} and type {image.dtype} isn't scaled; bring it to 0..255 as "
      "the training did: jseg.data.scale(image, low, high) with the run's data.low and data.high"
    )
  if image.shape[2] != channels:
    raise InputError(
      f"data.channels: {channels}, but an image has {image.shape[2]}; "
      f"set data.channels to {image.shape[2]}"
    )
  low, high = image.min(), image.max()
  if not (low >= 0 and high <= 255):
    raise InputError(
      f"an image of type float32 holds {low:g} to {high:g}; bring it to 0..255 as the training "
      "did: jseg.data.scale(image, low, high) with the run's data.low and data.high"
    )


def _train_example(
  example: Decoded,
  *,
  size: Size,
  channels: int,
  border: tuple[float, float] | None,
  scaled: bool,
) -> Batch:
  image, covered = resize_and_pad(as_channels(example["image"], channels, scaled=scaled), size)
  label = example["label"]
  if covered != label.shape:
    # The exact variant samples pixel centers, as AREA does; the plain one is half a pixel off.
    label = cv2.resize(label, covered[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
  batch = {
    "image": image,
    "label": _pad(label, size, IGNORE),
    "size": np.array(covered, np.int32),
  }
  if border is not None:
    weight, sigma = border
    batch["weight"] = _pad(border_weights(label, weight=weight, sigma=sigma), size, 0)
  return batch


def _train_objects(
  example: Decoded,
  *,
  size: Size,
  channels: int,
  objects: tuple[int, int],
  short_side: int,
  scaled: bool,
) -> Batch:
  image = as_channels(example["image"], channels, scaled=scaled)
  image, covered = resize_and_pad(image, size, short_side)
  slots, cells = objects
  targets = make_targets(example["objects"], covered, slots=slots, cells=cells)
  return {"image": image, "size": np.array(covered, np.int32), **targets}


def _eval_example(
  index: int,
  *,
  source: RandomAccess,
  size: Size,
  label_size: Size | None,
  channels: int,
  short_side: int,
  scaled: bool,
) -> Batch:
  label: np.ndarray | None
  if index < 0:
    one = (1,) * len(size)
    image = np.zeros((*one, channels), np.uint8 if len(size) == 2 and not scaled else np.float32)
    short_side = 0
    label = np.full(one, IGNORE, np.uint8)
  else:
    example = source[index]
    image, label = example["image"], example["label"] if label_size else None
  canvas, covered = resize_and_pad(as_channels(image, channels, scaled=scaled), size, short_side)
  batch = {"image": canvas, "size": np.array(covered, np.int32), "index": np.int32(index)}
  if label_size is not None and label is not None:
    batch["label"] = _pad(label, label_size, IGNORE)
    batch["label_size"] = np.array(label.shape, np.int32)
  return batch


def _fitted(shape: Size, size: Size, short_side: int) -> Size:
  """Size of an image that is brought to `short_side`, if given, and shrunk to fit a canvas."""
  wanted = short_side / min(shape) if short_side else 1.0
  scale = min(wanted, size[0] / shape[0], size[1] / shape[1])
  if scale == 1:
    return shape
  return min(size[0], max(1, round(shape[0] * scale))), min(
    size[1], max(1, round(shape[1] * scale))
  )


def _pad(array: np.ndarray, size: Size, value: int) -> np.ndarray:
  shape = array.shape[: len(size)]
  if shape == size:
    return array
  canvas = np.full((*size, *array.shape[len(size) :]), value, array.dtype)
  canvas[tuple(map(slice, shape))] = array
  return canvas


def _shuffled(source: RandomAccess | Sequence[int], seed: int) -> grain.MapDataset:
  """The endless stream of a source's examples, in a new order every epoch."""
  return grain.MapDataset.source(source).seed(seed).shuffle().repeat()


def _share(examples: grain.MapDataset, local: int, index: int, count: int) -> grain.MapDataset:
  """The examples of one process, `local` of every global batch: its part in the global order."""
  if count == 1:
    return examples

  def place(position: int) -> int:
    batch, inside = divmod(position, local)
    return (batch * count + index) * local + inside

  return grain.MapDataset.range(len(examples) // count).map(lambda i: examples[place(i)])


def _local_batch(
  batch_size: int, process_count: int, size: Size, channels: int, scaled: bool
) -> int:
  if batch_size < 1 or batch_size % process_count:
    raise InputError(
      f"batch size {batch_size} must be a multiple of the {process_count} processes that share it"
    )
  if len(size) == 2 and not scaled and channels not in (1, 3):
    raise InputError(f"channels {channels} must be 3 (RGB) or 1 (gray)")
  return batch_size // process_count


def _read_options(threads: int) -> grain.ReadOptions:
  # Threads work on whole batches; more of them waiting would only fill memory.
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
