"""A network of classes on the device: the training pass, the losses, and counting at full size."""

from collections.abc import Callable, Sequence
from typing import cast

import flax.struct
import jax
import jax.numpy as jnp

from jseg.arithmetic import cdiv
from jseg.augment import Augment, Example
from jseg.losses import Loss, weights_of
from jseg.metrics import binned, confusion
from jseg.models import Network
from jseg.nn import resize_to
from jseg.nn.devices import AXIS, example_keys, share_index
from jseg.step import Forward, Losses, parallel
from jseg.tasks.base import Unseen
from jseg.tasks.semantic.decision import BestClass, Decided, Decision
from jseg.types import Array, Batch, InputError, Outputs, Tree, Variables

Binned = tuple[Array, Array, Array] | None
"""What `jseg.metrics.binned` counts in an image; None where nobody asked."""


@flax.struct.dataclass
class Targets:
  """What the logits of a training batch are compared with.

  Attributes:
    label: int32 [b h w], or [b d h w]; IGNORE where nothing is known.
    weight: float32 as label, U-Net's weight map, or None.
  """

  label: Array
  weight: Array | None = None


def make_forward(model: Network | Unseen, augment: Augment) -> Forward:
  """Makes the training pass; its outputs are `Outputs`, its targets `Targets`.

  Args:
    model: network of classes.
    augment: augmentation of an `Example` with a label, and with a weight where batches have one.
  """

  def forward(
    variables: Variables, batch: Batch, key: Array, mutable: Sequence[str]
  ) -> tuple[Outputs, Targets, Variables]:
    augment_key, sample_key = jax.random.split(key)
    keys = example_keys(augment_key, len(batch["image"]))
    example = Example(
      image=batch["image"], size=batch["size"], label=batch["label"], weight=batch.get("weight")
    )
    example = jax.vmap(augment)(keys, example)
    targets = Targets(*jax.tree.map(model.training_labels, (example.label, example.weight)))
    outputs, updated = model.apply(
      variables,
      example.image,
      train=True,
      mutable=mutable,
      # Ours draws by an example's place, from one key; Flax's dropout, in networks of others, can
      # only draw for a device.
      rngs={"sample": sample_key, "dropout": jax.random.fold_in(sample_key, share_index())},
    )
    return cast(Outputs, outputs), targets, updated

  return forward


def make_losses(
  loss: Loss, class_weights: Array | None = None
) -> Callable[[Outputs, Targets], Losses]:
  """Makes `(outputs, targets) -> {"main": (sum, count), and one per auxiliary output}`.

  Args:
    loss: loss of logits and labels (`jseg.losses.make_loss`).
    class_weights: float32 [k], or None where all classes weigh the same.

  Returns:
    The losses. `targets.weight` is added to each pixel's class weight, as in U-Net's
    w = w_c + w_0 exp(...) (Ronneberger et al. 2015, equation 2), whose loss is not divided by the
    weights.
  """

  def losses(outputs: Outputs, targets: Targets) -> Losses:
    weights: dict[str, Array | None]
    if targets.weight is None:
      weights = {"class_weights": class_weights}
    else:
      by_class = 1.0 if class_weights is None else weights_of(targets.label, class_weights)
      weights = {"pixel_weights": targets.weight + by_class}
    if "main" in outputs.aux:
      raise InputError('aux: "main" is the name of the logits\' own loss; choose another')
    every = {"main": outputs.logits, **outputs.aux}
    return {name: loss(logits, targets.label, **weights) for name, logits in every.items()}

  return losses


def training_counts(outputs: Outputs, targets: Targets) -> dict[str, Array]:
  """Counts the `confusion` matrix int32 [k k] of a training batch, at the crop's resolution."""
  logits = outputs.logits
  return {"confusion": confusion(jnp.argmax(logits, -1), targets.label, logits.shape[-1])}


def decide_at_full_size(
  logits: Array,
  size: Array,
  label_size: Array,
  canvas: tuple[int, int],
  confident: bool = False,
  rows: int = 128,
  decision: Decision = BestClass(),
) -> Decided:
  """What is predicted of every pixel of an image's own size, in bounded memory.

  Args:
    logits: [H W k] of one image on its canvas.
    size: int32 [2], the part of the canvas that the image covers.
    label_size: int32 [2], height and width to bring it to.
    canvas: static (LH, LW), at least `label_size`.
    confident: whether it is computed too how sure that is.
    rows: static; largest number of rows of logits that exist at one time.
    decision: static; how pixels are decided.

  Returns:
    What the decision makes of [LH LW k]; what lies outside of `label_size` means nothing.
  """
  height = canvas[0]
  blocks = cdiv(height, rows)
  strip = cdiv(height, blocks)

  def block(first: Array) -> Decided:
    part = resize_to(logits, size, label_size, canvas, rows=(first, strip))
    return decision.decide(part, confident)

  strips = jax.lax.map(block, strip * jnp.arange(blocks))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:height], strips)


def count_example(
  logits: Array, size: Array, label: Array, label_size: Array, calibrate: bool = False
) -> tuple[Array, Binned]:
  """Counts one image at the size of its label [LH LW].

  Volumes keep their size on the canvas, so their labels [D H W] lie on the logits already.

  Returns:
    Confusion matrix int32 [k k], and what `jseg.metrics.binned` counts, or None.
  """
  if label.ndim == 3:
    decided = BestClass().decide(logits[tuple(slice(n) for n in label.shape)], calibrate)
  else:
    height, width = label.shape
    decided = decide_at_full_size(logits, size, label_size, (height, width), calibrate)
  prediction, confidence = decided[0].astype(jnp.int32), decided[1]
  bins = None if confidence is None else binned(confidence, prediction, label)
  return confusion(prediction, label, logits.shape[-1]), bins


def count_batch(logits: Array, batch: Batch, calibrate: bool = False) -> tuple[Array, Binned]:
  """Counts each image of a batch of logits [b H W k]: int32 [b k k], and bins or None.

  Images are counted one by one with the same arithmetic whatever the batch: a near tie between two
  classes can't fall one way in a batch of three and another way in a batch of eight.
  """

  def count(example: tuple[Array, Array, Array, Array]) -> tuple[Array, Binned]:
    return count_example(*example, calibrate=calibrate)

  return jax.lax.map(count, (logits, batch["size"], batch["label"], batch["label_size"]))


def make_eval_step(
  model: Network,
  prepare: Callable[[Array, Array], Array],
  count: Callable[[Array, Batch], tuple[Tree, ...]] = count_batch,
) -> Callable[[Variables, Batch], tuple[Tree, ...]]:
  """Makes `step(variables, batch) -> (index, *counts)`, mapped over the devices.

  Args:
    model: network of classes.
    prepare: `(image uint8 [b H W c], size [b 2]) -> float32 [b H W c]`, normalized.
    count: counts each image of a batch of logits, as `count_batch` does.

  Returns:
    The step: of each image of all devices of all processes its position in the split int32 [b],
    -1 of padding, and what was counted in it.
  """

  def step(variables: Variables, batch: Batch) -> tuple[Tree, ...]:
    image = prepare(batch["image"], batch["size"])
    outputs = cast(Outputs, model.apply(variables, image, train=False))
    counted = batch["index"], *count(outputs.logits, batch)
    return jax.lax.all_gather(counted, AXIS, tiled=True)

  return parallel(step, in_axes=(None, 0))
