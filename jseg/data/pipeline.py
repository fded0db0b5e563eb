"""From examples to batches of one static size: Grain shuffles, threads decode, all of it resumes.

A batch holds numpy arrays; see `train_iterator` and `eval_batches` for their names and shapes.
"""

import functools
from collections.abc import Iterator
from typing import Any, Protocol

import cv2
import grain
import numpy as np

from jseg.types import IGNORE, Batch, InputError

Size = tuple[int, int]


class RandomAccess(Protocol):
  """Decoded examples by position, such as `Dataset.source` gives."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


def train_iterator(
  source: RandomAccess,
  *,
  size: Size,
  batch_size: int,
  seed: int,
  channels: int = 3,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
) -> grain.DatasetIterator:
  """Endless training batches, shuffled anew every epoch.

  The stream of examples depends on source and seed alone; each process takes its share of every
  global batch, so that global batch i holds the same examples for any number of processes. The
  iterator's `get_state` and `set_state` resume it exactly.

  Args:
    source: random access to examples: `image` uint8 [h w c], `label` uint8 [h w].
    size: (H, W) of the canvas. Larger images are shrunk to fit with their aspect kept, smaller
      ones are only padded.
    batch_size: of the global batch, over all processes.
    seed: of the shuffle.
    channels: 3 (RGB) or 1 (grey); images are converted.
    process_index: which of the processes this is.
    process_count: how many there are; divides batch_size.
    threads: that read and decode.

  Returns:
    Iterator over dicts with b = batch_size / process_count: `image` uint8 [b H W channels] and
    `label` uint8 [b H W], at the top left of the canvas (elsewhere 0 and IGNORE); `size` int32
    [b 2], the rows and columns covered.

  Raises:
    InputError: if the source is empty or the batch cannot be shared out.
  """
  local = _local_batch(batch_size, process_count, channels)
  if not len(source):
    raise InputError("the training split is empty; add images to it")
  examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  examples = examples[process_index::process_count]
  batches = examples.map(functools.partial(_train_example, size=size, channels=channels))
  # The stream has no end to drop; Grain's length of a batched one overflows otherwise.
  batches = batches.batch(local, drop_remainder=True)
  return iter(batches.to_iter_dataset(_read_options(threads)))


def eval_batches(
  source: RandomAccess,
  *,
  size: Size,
  label_size: Size,
  batch_size: int,
  channels: int = 3,
  process_index: int = 0,
  process_count: int = 1,
  threads: int = 2,
) -> "EvalBatches":
  """One pass over a split, every example exactly once, with labels at original resolution.

  Args:
    source: see `train_iterator`.
    size: (H, W) of the image canvas, as in training.
    label_size: (LH, LW) of the label canvas: the largest height and width in the split.
    batch_size: of the global batch.
    channels: 3 (RGB) or 1 (grey).
    process_index: which of the processes this is.
    process_count: how many there are; all yield the same number of batches.
    threads: that read and decode.

  Returns:
    Sized iterable over dicts: `image`, `size` as in training; `label` uint8 [b LH LW], top left,
    IGNORE elsewhere; `label_size` int32 [b 2]; `index` int32 [b], the position in the split. The
    last batch is filled up with examples of index -1 that are IGNORE all over and of size (1, 1).

  Raises:
    InputError: if the batch cannot be shared out.
  """
  local = _local_batch(batch_size, process_count, channels)
  padded = -(-len(source) // batch_size) * batch_size
  indices = [i if i < len(source) else -1 for i in range(padded)]
  make = functools.partial(
    _eval_example, source=source, size=size, label_size=label_size, channels=channels
  )
  examples = grain.MapDataset.source(indices)[process_index::process_count].map(make)
  return EvalBatches(examples.batch(local), threads)


class EvalBatches:
  """What `eval_batches` returns: a sized iterable that can be walked repeatedly."""

  def __init__(self, batches: grain.MapDataset, threads: int):
    self._batches, self._threads = batches, threads

  def __len__(self) -> int:
    return len(self._batches)

  def __iter__(self) -> Iterator[Batch]:
    return iter(self._batches.to_iter_dataset(_read_options(self._threads)))


def fit(image: np.ndarray, size: Size) -> tuple[np.ndarray, Size]:
  """Puts an image on a canvas, shrunk with its aspect kept if it is larger.

  Args:
    image: uint8 [h w c].
    size: (H, W) of the canvas.

  Returns:
    (uint8 [H W c], (rows, columns)): the canvas, 0 where the image does not reach, and what the
    image covers from the top left.
  """
  covered = _fitted(image.shape[:2], size)
  if covered != image.shape[:2]:
    image = cv2.resize(image, covered[::-1], interpolation=cv2.INTER_AREA)
    image = image.reshape(*covered, -1)  # OpenCV drops the axis of a single channel
  return _pad(image, size, 0), covered


def as_channels(image: np.ndarray, channels: int) -> np.ndarray:
  """Converts an image to the channels a network takes.

  Args:
    image: uint8 [h w], [h w 1] (grey), [h w 3] (RGB) or [h w 4] (RGBA; alpha is dropped).
    channels: 3 (RGB) or 1 (grey).

  Returns:
    uint8 [h w channels].

  Raises:
    InputError: if it is another kind of array.
  """
  if image.ndim == 2:
    image = image[..., None]
  if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.dtype != np.uint8:
    raise InputError(
      f"an image of shape {image.shape} and type {image.dtype} is none; give uint8 [h w], "
      "[h w 3] (RGB) or [h w 4] (RGBA)"
    )
  image = image[..., :3]
  if image.shape[2] == channels:
    return image
  if channels == 1:
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None]
  return np.repeat(image, 3, -1)


def _train_example(example: dict[str, Any], *, size: Size, channels: int) -> Batch:
  image, covered = fit(as_channels(example["image"], channels), size)
  label = example["label"]
  if covered != label.shape:
    # The exact variant samples pixel centres, as AREA does; the plain one is half a pixel off.
    label = cv2.resize(label, covered[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
  return {
    "image": image,
    "label": _pad(label, size, IGNORE),
    "size": np.array(covered, np.int32),
  }


def _eval_example(
  index: int, *, source: RandomAccess, size: Size, label_size: Size, channels: int
) -> Batch:
  if index < 0:
    image, label = np.zeros((1, 1, channels), np.uint8), np.full((1, 1), IGNORE, np.uint8)
  else:
    example = source[index]
    image, label = example["image"], example["label"]
  canvas, covered = fit(as_channels(image, channels), size)
  return {
    "image": canvas,
    "size": np.array(covered, np.int32),
    "label": _pad(label, label_size, IGNORE),
    "label_size": np.array(label.shape, np.int32),
    "index": np.int32(index),
  }


def _fitted(shape: Size, size: Size) -> Size:
  """Size of an image after shrinking, if need be, into a canvas."""
  scale = min(size[0] / shape[0], size[1] / shape[1])
  if scale >= 1:
    return shape
  return min(size[0], max(1, round(shape[0] * scale))), min(
    size[1], max(1, round(shape[1] * scale))
  )


def _pad(array: np.ndarray, size: Size, value: int) -> np.ndarray:
  if array.shape[:2] == size:
    return array
  canvas = np.full((*size, *array.shape[2:]), value, array.dtype)
  canvas[: array.shape[0], : array.shape[1]] = array
  return canvas


def _local_batch(batch_size: int, process_count: int, channels: int) -> int:
  if batch_size < 1 or batch_size % process_count:
    raise InputError(
      f"batch size {batch_size} must be a multiple of the {process_count} processes that share it"
    )
  if channels not in (1, 3):
    raise InputError(f"channels {channels} must be 3 (RGB) or 1 (grey)")
  return batch_size // process_count


def _read_options(threads: int) -> grain.ReadOptions:
  # Threads work on whole batches; more of them waiting would only fill memory.
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
