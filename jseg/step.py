"""The seam over devices: how a batch is split, how a step is mapped, and the training step.

Steps are written over the named axis `batch` and mapped by `parallel`, so one step serves one CPU,
eight GPUs or a pod slice. State goes in and comes out replicated (`in_axes=None`, `out_axes=None`):
what comes out is device 0's value, so everything returned has been reduced before.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jseg.nn.devices import AXIS
from jseg.optim import frozen
from jseg.state import TrainState
from jseg.types import Array, Batch, Variables

Losses = dict[str, tuple[Array, Array]]
"""Losses by name, each as (sum, count): float32 scalars of one device's part of the batch."""
Counts = dict[str, Array]
"""Integers by name that add up over devices and batches, such as a confusion matrix."""
TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, dict[str, Any]]]
"""`(state, batch, key) -> (state, metrics)`."""

_Tree = TypeVar("_Tree")


class Forward(Protocol):
  """A network's pass over a training batch, augmentation included."""

  def __call__(
    self, variables: Variables, batch: Batch, key: Array, mutable: Sequence[str]
  ) -> tuple[Any, Any, Variables]:
    """Returns (outputs, targets, updated collections), the first two for `losses` and `counts`."""


def shard(batch: Mapping[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
  """Splits the first axis over the local devices: [b ...] -> [devices b/devices ...]."""
  return {k: v.reshape(devices, v.shape[0] // devices, *v.shape[1:]) for k, v in batch.items()}


def replicate(tree: _Tree) -> _Tree:
  """Copies a pytree to every device, laid out as the steps return it.

  Otherwise a step would be compiled twice: for what init or a checkpoint gave, and for its own
  results.
  """
  mesh = Mesh(np.array(_devices()), (AXIS,))
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _devices() -> list[jax.Device]:
  """All devices, process by process, as the parts of a global batch are dealt out."""
  return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def parallel(
  step: Callable[..., Any], in_axes: tuple[int | None, ...], *, donate: bool = False
) -> Callable[..., Any]:
  """Maps a step over the devices.

  Args:
    step: function over the named axis `AXIS`; everything it returns must have been reduced.
    in_axes: for each argument, 0 if it has a leading axis of devices (see `shard`), None if it is
      the same on every device.
    donate: whether the first argument's buffers may be reused for the results.
  """
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=in_axes,
    out_axes=None,
    # One process may use fewer than it has; the batch's first axis says how many.
    devices=_devices() if jax.process_count() > 1 else None,
    donate_argnums=(0,) if donate else (),
  )


def meet() -> None:
  """Lets the devices of several processes meet in a first, small sum.

  On CPUs all must come to their first sum within half a minute, and to later ones at any time: a
  program that takes one of them longer to compile must not be the first.
  """
  if jax.process_count() > 1:
    add = parallel(lambda x: jax.lax.psum(x, AXIS), in_axes=(0,))
    jax.block_until_ready(add(np.ones(jax.local_device_count(), np.float32)))


def make_train_step(
  optimizer: optax.GradientTransformation,
  forward: Forward,
  losses: Callable[[Any, Any], Losses],
  counts: Callable[[Any, Any], Counts] = lambda outputs, targets: {},
  *,
  weights: Mapping[str, float] | None = None,
  ema: float = 0.0,
  freeze: Sequence[str] = (),
) -> TrainStep:
  """Makes `step(state, batch, key) -> (state, metrics)`, mapped over the devices.

  Args:
    optimizer: turns gradients into updates.
    forward: augments a batch and applies the network as in training.
    losses: `(outputs, targets) -> {name: (sum, count)}`. The loss is the sum over the names of
      weight x sum / count, both sums taken over the global batch before the division.
    counts: `(outputs, targets) -> {name: integers}` to log, summed over the global batch.
    weights: weight of each loss by name; 1 where not given.
    ema: decay of the moving average of the parameters; 0 is off.
    freeze: parts of the network that get no gradient, as named to the optimizer.

  Returns:
    The step. `batch` has a leading axis of local devices (see `shard`); `key` is the run's key,
    the same at every step: all randomness is a function of (key, step, position in the global
    batch), so that neither a restart nor the number of devices changes what is drawn. `metrics`
    holds `loss`, `losses` (mean and count by name), `grad_norm` (over the trained parameters) and
    the counts. The input state is donated.
  """
  weights = weights or {}

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, dict[str, Any]]:
    key = jax.random.fold_in(key, state.step)
    fixed = frozen(state.params, freeze)

    def total_loss(params: Any) -> tuple[Array, Any]:
      # Stop the gradient here: zeroing updates in the optimizer would still pay for the backward
      # pass.
      params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, fixed)
      variables = {"params": params, "batch_stats": state.batch_stats}
      outputs, targets, updated = forward(variables, batch, key, ["batch_stats"])
      parts = losses(outputs, targets)
      # Known before the backward pass; a loss of no pixel has gradient 0, not 0 / 0.
      totals = jax.lax.psum(jax.lax.stop_gradient({n: c for n, (_, c) in parts.items()}), AXIS)
      means = {n: s / jnp.where(totals[n] > 0, totals[n], 1.0) for n, (s, _) in parts.items()}
      total = jnp.float32(0)
      for name, mean in means.items():
        total += weights.get(name, 1.0) * mean
      return total, (means, totals, updated.get("batch_stats", {}), counts(outputs, targets))

    (loss, (means, totals, batch_stats, counted)), grads = jax.value_and_grad(
      total_loss, has_aux=True
    )(state.params)
    loss, means, counted, grads = jax.lax.psum((loss, means, counted, grads), AXIS)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      ema=_average(params, state, ema) if ema else state.ema,
    )
    metrics = {
      "loss": loss,
      "losses": {name: (mean, totals[name]) for name, mean in means.items()},
      "grad_norm": optax.tree.norm(grads),
      **counted,
    }
    return state, metrics

  return parallel(step, in_axes=(None, 0, None), donate=True)


def _average(params: Any, state: TrainState, decay: float) -> Any:
  """The moving average of the parameters after one more step."""
  # As in TensorFlow's moving average: early steps count for more, so that the average is not held
  # back by the initial values.
  current = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
  return optax.incremental_update(params, state.ema, 1.0 - current)


def make_moments_step(forward: Forward) -> Callable[[TrainState, Batch, Array], Any]:
  """Makes `step(state, batch, key) -> moments`: what each norm sees in a training batch.

  Args:
    forward: the network's training pass, as for `make_train_step`.

  Returns:
    The step, mapped over the devices; its results go into `jseg.nn.norm.average_moments`.
  """

  def step(state: TrainState, batch: Batch, key: Array) -> Any:
    return forward(state.variables(), batch, key, ["batch_stats", "moments"])[-1]["moments"]

  return parallel(step, in_axes=(None, 0, None))
