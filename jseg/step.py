"""The training step and the evaluation step: the only place that knows of devices.

Both are written over the named axis `batch` and mapped with pmap, so one step serves one CPU, eight
GPUs or a pod slice. State goes in and comes out replicated (`in_axes=None`, `out_axes=None`): what
comes out is device 0's value, so everything returned has been reduced before.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jseg.losses import mean_over_devices
from jseg.metrics import confusion
from jseg.nn import AXIS, resize_to
from jseg.state import TrainState
from jseg.types import Array, Batch, Outputs

Augment = Callable[..., tuple[Array, ...]]
Loss = Callable[[Outputs, Array, Array | None], tuple[Array, Array]]
TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Array]]]

_Tree = TypeVar("_Tree")

_ROWS = 128  # rows of a full-size prediction that exist at one time


def shard(batch: Mapping[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
  """Splits the first axis over the local devices: [b ...] -> [devices b/devices ...]."""
  return {k: v.reshape(devices, v.shape[0] // devices, *v.shape[1:]) for k, v in batch.items()}


def replicate(tree: _Tree) -> _Tree:
  """Copies a pytree to every device, laid out as the steps return it.

  Otherwise a step would be compiled twice: for what init or a checkpoint gave, and for its own
  results.
  """
  mesh = Mesh(np.array(jax.devices()), (AXIS,))
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def make_train_step(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  augment: Augment,
  loss: Loss,
  counts: Callable[[Outputs, Array], Array],
  *,
  ema: float = 0.0,
) -> TrainStep:
  """Makes `step(state, batch, key) -> (state, metrics)`, pmapped over the batch.

  Args:
    model: the network. Where it has `training_labels`, labels and weights go through that.
    optimizer: gradients to updates.
    augment: `(key, image [H W c], label [H W], size [2]) -> (image [h w c], label [h w])`, or with
      `weight` [H W] after `size`, a batch's weights of pixels, and [h w] as a third result.
    loss: `(outputs, label, weight or None) -> (sum, count)`.
    counts: `(outputs, label) -> int32 [k k]`, the confusion matrix of the batch.
    ema: decay of the moving average of the parameters; 0 is off.

  Returns:
    The step. `batch` has a leading axis of local devices (see `shard`); `key` is the run's key,
    the same at every step: all randomness is a function of (key, step, position in the global
    batch), so that neither a restart nor the number of devices changes what is drawn (dropout,
    drawn per device, is the exception). `metrics`: `loss` (mean over the global batch's valid
    pixels), `grad_norm`, `valid` (what the loss was divided by), `confusion` int32 [k k]. The
    state that went in is donated.
  """

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Array]]:
    key = jax.random.fold_in(key, state.step)
    augment_key, dropout_key = jax.random.split(key)
    image, label, weight = _augment(model, augment, augment_key, batch)

    def forward(params):
      outputs, updated = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        image,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))},
      )
      total, count = loss(outputs, label, weight)
      return total, (count, updated.get("batch_stats", {}), counts(outputs, label))

    (total, (count, batch_stats, matrix)), grads = jax.value_and_grad(forward, has_aux=True)(
      state.params
    )
    mean_loss, valid = mean_over_devices(total, count, AXIS)
    # A batch without one valid pixel has gradient 0, not 0 / 0.
    divisor = jnp.where(valid > 0, valid, 1.0)
    grads = jax.tree.map(lambda g: g / divisor, jax.lax.psum(grads, AXIS))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if ema:
      # As in TensorFlow's moving average: early steps count for more, so that the average is not
      # held back by the initial values.
      decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
      average = optax.incremental_update(params, state.ema, 1.0 - decay)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      ema=average,
    )
    metrics = {
      "loss": mean_loss,
      "grad_norm": optax.tree.norm(grads),
      "valid": valid,
      "confusion": jax.lax.psum(matrix, AXIS),
    }
    return state, metrics

  return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0)


def _augment(
  model: nn.Module, augment: Augment, key: Array, batch: Batch
) -> tuple[Array, Array, Array | None]:
  """Images, labels and weights as the loss sees them, each drawn by its place in the batch."""
  first = jax.lax.axis_index(AXIS) * len(batch["image"])
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    key, first + jnp.arange(len(batch["image"]))
  )
  names = [name for name in ("image", "label", "size", "weight") if name in batch]
  image, *targets = jax.vmap(augment)(keys, *(batch[name] for name in names))
  align = getattr(model, "training_labels", None)
  label, *weight = map(align, targets) if align else targets
  return image, label, weight[0] if weight else None


def make_moments_step(
  model: nn.Module, augment: Augment
) -> Callable[[TrainState, Batch, Array], Any]:
  """Makes `step(state, batch, key) -> moments`: what each norm sees in a training batch.

  Args:
    model: the network.
    augment: as for `make_train_step`.

  Returns:
    The step; its result goes into `average_moments`.
  """

  def step(state: TrainState, batch: Batch, key: Array) -> Any:
    augment_key, dropout_key = jax.random.split(key)
    image, _, _ = _augment(model, augment, augment_key, batch)
    _, updated = model.apply(
      state.variables(),
      image,
      train=True,
      mutable=["batch_stats", "moments"],
      rngs={"dropout": jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))},
    )
    return updated["moments"]

  return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None)


def average_moments(moments: Sequence[Any]) -> Any:
  """Running statistics exact for the given batches, from what `make_moments_step` returned.

  Badrinarayanan et al. 2017, section 4; Wu & Johnson 2021, arXiv:2105.07576, "precise BN".
  """
  mean = jax.tree.map(lambda *a: jnp.stack(a).mean(0), *moments)

  def statistics(tree: Any) -> Any:
    if "square" not in tree:
      return {name: statistics(child) for name, child in tree.items()}
    (first,), (square,) = tree["mean"], tree["square"]
    return {"mean": first, "var": jnp.maximum(square - jnp.square(first), 0.0)}

  return statistics(mean)


def label_at_full_size(
  logits: Array, size: Array, label_size: Array, canvas: tuple[int, int]
) -> Array:
  """The predicted class at every pixel of an image's own size, in bounded memory.

  Args:
    logits: [H W k] of one image on its canvas.
    size: int32 [2], the part of the canvas that the image covers.
    label_size: int32 [2], height and width to bring it to.
    canvas: static (LH, LW), at least `label_size`.

  Returns:
    int32 [LH LW]; what lies outside of `label_size` means nothing.
  """
  height, width = canvas
  blocks = -(-height // _ROWS)
  rows = -(-height // blocks)

  def block(first: Array) -> Array:
    part = resize_to(logits, size, label_size, canvas, rows=(first, rows))
    return jnp.argmax(part, -1).astype(jnp.int32)

  return jax.lax.map(block, rows * jnp.arange(blocks)).reshape(-1, width)[:height]


def count_example(logits: Array, size: Array, label: Array, label_size: Array) -> Array:
  """Confusion matrix int32 [k k] of one image, at the size of its label [LH LW].

  Volumes keep their size on the canvas, so their labels [D H W] lie on the logits already.
  """
  if label.ndim == 3:
    prediction = jnp.argmax(logits, -1)[tuple(slice(n) for n in label.shape)]
  else:
    height, width = label.shape
    prediction = label_at_full_size(logits, size, label_size, (height, width))
  return confusion(prediction, label, logits.shape[-1])


def count_batch(logits: Array, batch: Batch) -> Array:
  """Confusion matrix int32 [k k] of a batch of logits [b H W k].

  Images are counted one by one with the same arithmetic whatever the batch: a near tie between two
  classes can't fall one way in a batch of three and another way in a batch of eight.
  """
  counts = jax.lax.map(
    lambda example: count_example(*example),
    (logits, batch["size"], batch["label"], batch["label_size"]),
  )
  return counts.sum(0)


def make_eval_step(
  model: nn.Module, prepare: Callable[[Array, Array], Array]
) -> Callable[[Any, Batch], Array]:
  """Makes `step(variables, batch) -> confusion`, pmapped over the batch.

  Args:
    model: the network.
    prepare: `(image uint8 [b H W c], size [b 2]) -> float32 [b H W c]`, normalised.

  Returns:
    The step; int32 [k k], summed over all devices of all processes.
  """

  def step(variables: Any, batch: Batch) -> Array:
    image = prepare(batch["image"], batch["size"])
    outputs = cast(Outputs, model.apply(variables, image, train=False))
    return jax.lax.psum(count_batch(outputs.logits, batch), AXIS)

  return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
