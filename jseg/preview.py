"""What a network is trained on: batches after augmentation, drawn before anything is trained."""

import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from jseg import config as configs
from jseg import tasks
from jseg.nn.devices import AXIS
from jseg.outputs import try_file
from jseg.report import save_previews
from jseg.state import run_keys
from jseg.step import parallel, shard
from jseg.types import Array, Batch, InputError, Tree

Pair = tuple[np.ndarray, Tree]
"""Images and targets of a batch, as a network is trained on them."""

_MOST = 64  # pictures on a page


def preview(config: ConfigDict, out: str | pathlib.Path, batches: int = 1) -> int:
  """Draws the first batches of a training as the network sees them, with their targets.

  They are the ones that a run of this configuration begins with, draw for draw.

  Args:
    config: a configuration.
    out: the picture to write, .png, .jpg or .webp.
    batches: number of batches; 64 images are drawn at most.

  Returns:
    Number of images on the picture.

  Raises:
    InputError: the configuration, the data or `out` can't be used.
  """
  if batches < 1:
    raise InputError(f"batches: {batches} must be at least 1")
  out = pathlib.Path(out)
  try_file(out, "name another --out", (".png", ".jpg", ".jpeg", ".webp"))
  configs.validate(config)
  task, dataset = configs.make_task(config)
  pictures: list[np.ndarray] = []
  for images, targets in _batches(config, task, task.batches(dataset, config.seed), batches):
    pictures += task.target_pictures(images, targets)
    if len(pictures) >= _MOST:
      break
  pictures = pictures[:_MOST]
  save_previews(pictures, task.legend(), out)
  return len(pictures)


def _batches(
  config: ConfigDict, task: tasks.Task, iterator: Iterator[Batch], count: int
) -> Iterator[Pair]:
  """(images, targets) of the first batches, as arrays of the host."""
  augmented, key = make_augmented(task), run_keys(config.seed)[1]
  for number in range(count):
    batch = shard(next(iterator), jax.local_device_count())
    yield augmented(batch, jax.random.fold_in(key, number))


def make_augmented(task: tasks.Task) -> Callable[[Batch, Array], Pair]:
  """Makes `augmented(batch, key) -> (images, targets)`: what a network is trained on.

  Args:
    task: task of the run.

  Returns:
    A function of a batch with a leading axis of devices (`jseg.step.shard`) and the run's key with
    the number of finished steps folded in. It returns arrays of the host.
  """
  forward = task.forward(without_network=True)

  def step(batch: Batch, key: Array) -> Pair:
    images, targets, _ = forward({}, batch, key, [])
    return jax.lax.all_gather((images, targets), AXIS, tiled=True)

  mapped = parallel(step, in_axes=(0, None))
  return lambda batch, key: jax.device_get(mapped(batch, key))
