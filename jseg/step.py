"""The training step and the evaluation step: the only place that knows of devices.

Both are written over the named axis `batch` and mapped with pmap, so one step serves one CPU, eight
GPUs or a pod slice. State goes in and comes out replicated (`in_axes=None`, `out_axes=None`): what
comes out is device 0's value, so everything returned has been reduced before.
"""

import dataclasses
import functools
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
from jseg.optim import frozen
from jseg.state import TrainState
from jseg.types import Array, Batch, Detections, InstanceOutputs, Outputs, Targets

Augment = Callable[..., tuple[Any, ...]]
Loss = Callable[[Outputs, Array, Array | None], tuple[Array, Array]]
Terms = dict[str, tuple[Array, Array, float]]
"""Parts of a loss by name: (sum, count, weight) on one device."""
Forward = Callable[[Any, Batch, Array, Sequence[str]], tuple[Any, Any, Any]]
TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Any]]]

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
  freeze: Sequence[str] = (),
) -> TrainStep:
  """Makes the training step of a network of pixels: `make_update_step` with one term, `loss`.

  Args:
    model: the network. Where it has `training_labels`, labels and weights go through that.
    optimizer: gradients to updates.
    augment: `(key, image [H W c], label [H W], size [2]) -> (image [h w c], label [h w])`, or with
      `weight` [H W] after `size`, a batch's weights of pixels, and [h w] as a third result.
    loss: `(outputs, label, weight or None) -> (sum, count)`.
    counts: `(outputs, label) -> int32 [k k]`, the confusion matrix of the batch.
    ema: decay of the moving average of the parameters; 0 is off.
    freeze: parts of the network that no gradient is computed for, as named to the optimizer.

  Returns:
    The step. Its metrics have `confusion` int32 [k k] besides; `valid` is what the loss was
    divided by.
  """

  def terms(outputs: Outputs, targets: Sequence[Array]) -> Terms:
    label, *weight = targets
    return {"loss": (*loss(outputs, label, weight[0] if weight else None), 1.0)}

  def measures(outputs: Outputs, targets: Sequence[Array]) -> dict[str, Array]:
    return {"confusion": counts(outputs, targets[0])}

  forward = pixels_forward(model, augment)
  return make_update_step(optimizer, forward, terms, measures, ema=ema, freeze=freeze)


def make_update_step(
  optimizer: optax.GradientTransformation,
  forward: Forward,
  terms: Callable[[Any, Any], Terms],
  measures: Callable[[Any, Any], dict[str, Array]],
  *,
  ema: float = 0.0,
  freeze: Sequence[str] = (),
) -> TrainStep:
  """Makes `step(state, batch, key) -> (state, metrics)`, pmapped over the batch.

  Args:
    optimizer: gradients to updates.
    forward: `(variables, batch, key, mutable) -> (outputs, targets, collections)`: augments a
      batch and applies the network as in training.
    terms: `(outputs, targets) -> {name: (sum, count, weight)}`. The loss is the sum over the terms
      of weight x sum / count, sum and count being those of the global batch.
    measures: `(outputs, targets) -> {name: counts}`, integers that add up over batches.
    ema: decay of the moving average of the parameters; 0 is off.
    freeze: parts of the network that no gradient is computed for, as named to the optimizer.

  Returns:
    The step. `batch` has a leading axis of local devices (see `shard`); `key` is the run's key,
    the same at every step: all randomness is a function of (key, step, position in the global
    batch), so that neither a restart nor the number of devices changes what is drawn (dropout,
    drawn per device, is the exception). `metrics`: `loss`, `terms` (each one's mean and count),
    `grad_norm` (of what is trained), `valid` (the largest count), and the measures. The state that
    went in is donated.
  """

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Any]]:
    key = jax.random.fold_in(key, state.step)

    still = frozen(state.params, freeze)

    def total_loss(params: Any) -> tuple[Array, Any]:
      # Optimizers would only drop these gradients; this way they take no time either.
      params = jax.tree.map(lambda p, s: jax.lax.stop_gradient(p) if s else p, params, still)
      variables = {"params": params, "batch_stats": state.batch_stats}
      outputs, targets, updated = forward(variables, batch, key, ["batch_stats"])
      parts = terms(outputs, targets)
      counts = {name: count for name, (_, count, _) in parts.items()}
      counts = jax.lax.psum(jax.lax.stop_gradient(counts), AXIS)
      largest = functools.reduce(jnp.maximum, counts.values())
      # Sums are divided last, by the largest count; terms that have fewer are scaled up to it.
      total = sum(
        weight * part * (largest / jnp.where(counts[name] > 0, counts[name], 1.0))
        for name, (part, _, weight) in parts.items()
      )
      measured = measures(outputs, targets)
      return total, (parts, largest, updated.get("batch_stats", {}), measured)

    (_, (parts, valid, batch_stats, measured)), grads = jax.value_and_grad(
      total_loss, has_aux=True
    )(state.params)
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
    means = {name: mean_over_devices(part, count, AXIS) for name, (part, count, _) in parts.items()}
    metrics = {
      "loss": sum(weight * means[name][0] for name, (_, _, weight) in parts.items()),
      "terms": means,
      "grad_norm": optax.tree.norm(grads),
      "valid": valid,
      **jax.lax.psum(measured, AXIS),
    }
    return state, metrics

  return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0)


def pixels_forward(model: nn.Module, augment: Augment) -> Forward:
  """The forward of a network of pixels; its targets are labels, or (labels, weights of pixels)."""

  def forward(
    variables: Any, batch: Batch, key: Array, mutable: Sequence[str]
  ) -> tuple[Outputs, Sequence[Array], Any]:
    augment_key, dropout_key = jax.random.split(key)
    names = [name for name in ("image", "label", "size", "weight") if name in batch]
    keys = example_keys(augment_key, len(batch["image"]))
    image, *targets = jax.vmap(augment)(keys, *(batch[name] for name in names))
    align = getattr(model, "training_labels", None)
    if align:
      targets = [align(target) for target in targets]
    outputs, updated = model.apply(
      variables,
      image,
      train=True,
      mutable=mutable,
      rngs={"dropout": jax.random.fold_in(dropout_key, jax.lax.axis_index(AXIS))},
    )
    return cast(Outputs, outputs), targets, updated

  return forward


def objects_forward(model: nn.Module, augment: Augment) -> Forward:
  """The forward of a network of objects.

  Args:
    model: the network. Its random draws (`sample`) get the same key on every device; it tells its
      images apart by their place in the global batch.
    augment: `(key, image [H W c], size [2], targets) -> (image [h w c], size [2], targets)`, with
      `Targets` of one image.
  """

  def forward(
    variables: Any, batch: Batch, key: Array, mutable: Sequence[str]
  ) -> tuple[InstanceOutputs, Targets, Any]:
    augment_key, sample_key = jax.random.split(key)
    keys = example_keys(augment_key, len(batch["image"]))
    padded = Targets(**{f.name: batch[f.name] for f in dataclasses.fields(Targets)})
    image, size, targets = jax.vmap(augment)(keys, batch["image"], batch["size"], padded)
    outputs, updated = model.apply(
      variables,
      image,
      size=size,
      train=True,
      targets=targets,
      mutable=mutable,
      rngs={"sample": sample_key},
    )
    return cast(InstanceOutputs, outputs), targets, updated

  return forward


def example_keys(key: Array, batch: int) -> Array:
  """A key for each of a device's examples, by its place in the global batch: keys [b]."""
  places = jax.lax.axis_index(AXIS) * batch + jnp.arange(batch)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)


def make_moments_step(
  model: nn.Module,
  augment: Augment,
  make_forward: Callable[[nn.Module, Augment], Forward] = pixels_forward,
) -> Callable[[TrainState, Batch, Array], Any]:
  """Makes `step(state, batch, key) -> moments`: what each norm sees in a training batch.

  Args:
    model: the network.
    augment: as for `make_forward`.
    make_forward: `pixels_forward` or `objects_forward`.

  Returns:
    The step; its result goes into `average_moments`.
  """
  forward = make_forward(model, augment)

  def step(state: TrainState, batch: Batch, key: Array) -> Any:
    return forward(state.variables(), batch, key, ["batch_stats", "moments"])[-1]["moments"]

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


def make_detect_step(
  model: nn.Module, prepare: Callable[[Array, Array], Array]
) -> Callable[[Any, Batch], tuple[Array, Array, Detections]]:
  """Makes `step(variables, batch) -> (index, size, detections)`, pmapped over the batch.

  Args:
    model: the network.
    prepare: as for `make_eval_step`.

  Returns:
    The step. It hands out the whole global batch, b images of all devices of all processes, as
    the measures need the scores of a whole split in one order.
  """

  def step(variables: Any, batch: Batch) -> tuple[Array, Array, Detections]:
    image = prepare(batch["image"], batch["size"])
    detections = cast(Detections, model.apply(variables, image, size=batch["size"], train=False))
    parts = batch["index"], batch["size"], detections
    return jax.lax.all_gather(parts, AXIS, tiled=True)

  return jax.pmap(step, axis_name=AXIS, in_axes=(None, 0), out_axes=None)
