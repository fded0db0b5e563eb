"""A network of objects on the device: the training pass and detection."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

import jax

from jseg.augment import Augment, Example
from jseg.models import Network
from jseg.nn.devices import AXIS, example_keys
from jseg.step import Forward, parallel
from jseg.tasks.base import Unseen
from jseg.types import Array, Batch, Detections, InstanceOutputs, Targets, Tree, Variables


def make_forward(model: Network | Unseen, augment: Augment) -> Forward:
  """Makes the training pass; its outputs are `InstanceOutputs`, its targets `Targets`.

  Args:
    model: network of objects. Its random draws (`sample`) get the same key on every device; it
      tells its images apart by their place in the global batch.
    augment: augmentation of an `Example` with `targets`.
  """

  def forward(
    variables: Variables, batch: Batch, key: Array, mutable: Sequence[str]
  ) -> tuple[InstanceOutputs, Targets, Variables]:
    augment_key, sample_key = jax.random.split(key)
    keys = example_keys(augment_key, len(batch["image"]))
    padded = Targets(**{f.name: batch[f.name] for f in dataclasses.fields(Targets)})
    example = Example(image=batch["image"], size=batch["size"], targets=padded)
    example = jax.vmap(augment)(keys, example)
    outputs, updated = model.apply(
      variables,
      example.image,
      size=example.size,
      train=True,
      targets=example.targets,
      mutable=mutable,
      rngs={"sample": sample_key},
    )
    return cast(InstanceOutputs, outputs), cast(Targets, example.targets), updated

  return forward


def make_detect_step(
  model: Network, prepare: Callable[[Array, Array], Array]
) -> Callable[[Variables, Batch], tuple[Array, Array, Detections]]:
  """Makes `step(variables, batch) -> (index, size, detections)`, mapped over the devices.

  Args:
    model: network of objects.
    prepare: `(image uint8 [b H W c], size [b 2]) -> float32 [b H W c]`, normalized.

  Returns:
    The step. It returns the whole global batch, b images of all devices of all processes, as the
    metrics need the scores of a whole split in one order.
  """

  def step(variables: Variables, batch: Batch) -> tuple[Array, Array, Detections]:
    image = prepare(batch["image"], batch["size"])
    detections = model.apply(variables, image, size=batch["size"], train=False)
    parts: Tree = batch["index"], batch["size"], cast(Detections, detections)
    return jax.lax.all_gather(parts, AXIS, tiled=True)

  return parallel(step, in_axes=(None, 0))
