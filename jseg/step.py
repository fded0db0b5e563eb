"""The seam over devices: how a batch is split, how a step is mapped, and the training step.

Steps are written over the named axis `batch` and mapped by `parallel`, so one step serves one CPU,
eight GPUs or a pod slice. State goes in and comes out replicated (`in_axes=None`, `out_axes=None`):
what comes out is device 0's value, so everything returned has been reduced before.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jseg import hosts, loss_scale
from jseg.arithmetic import cdiv
from jseg.nn.devices import AXIS, part_of_batch
from jseg.optim import frozen
from jseg.state import TrainState
from jseg.types import Array, Batch, Metrics, Params, Tree, Variables

Losses = dict[str, tuple[Array, Array]]
"""Losses by name, each as (sum, count): float32 scalars of one device's part of the batch."""
Counts = dict[str, Array]
"""Integers by name that add up over devices and batches, such as a confusion matrix."""
LossFn = Callable[[Tree, Tree], Losses]
"""From (outputs, targets) of one device's part of a batch to its losses."""
CountFn = Callable[[Tree, Tree], Counts]
"""From (outputs, targets) of one device's part of a batch to what is counted in it."""
TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]
"""`(state, batch, key) -> (state, metrics)`."""

_Tree = TypeVar("_Tree")
_Carry = TypeVar("_Carry")
_Result = TypeVar("_Result")
_Item = TypeVar("_Item")


class Forward(Protocol):
  """A network's pass over a training batch, augmentation included."""

  def __call__(
    self, variables: Variables, batch: Batch, key: Array, mutable: Sequence[str]
  ) -> tuple[Tree, Tree, Variables]:
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
  with hosts.lost_processes():  # JAX compares what several processes put there
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def _devices() -> list[jax.Device]:
  """All devices, process by process, as the parts of a global batch are dealt out."""
  return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def parallel(
  step: Callable[..., _Result], in_axes: tuple[int | None, ...], *, donate: bool = False
) -> Callable[..., _Result]:
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


class LocalDevices:
  """The devices of this process, which share batches of independent items.

  Attributes:
    batch_size: items of a full batch over all of them.

  Args:
    batch_size: the same, before it is rounded up to a multiple of their number.
  """

  def __init__(self, batch_size: int):
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), (AXIS,))
    self._devices, self._count = devices, mesh.size
    self.batch_size = self.round_up(batch_size)
    self._same, self._split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    self._given: Tree = None
    self._copies: Tree = None

  def round_up(self, count: int) -> int:
    """Returns the smallest number of items, at least `count`, that the devices can share."""
    return cdiv(count, self._count) * self._count

  def batches(self, items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Yields the items batch by batch; the last batch may be smaller."""
    for first in range(0, len(items), self.batch_size):
      yield items[first : first + self.batch_size]

  def replicate(self, tree: _Tree) -> _Tree:
    """Copies a pytree to every device, unless it is the one that was copied last."""
    if tree is not self._given:
      self._given, self._copies = tree, jax.device_put(tree, self._same)
    return self._copies

  def map(self, function: Callable[..., _Result]) -> Callable[..., Callable[[], _Result]]:
    """Maps `function(same, *arrays)` over the devices, each of which gets its part of the arrays.

    Args:
      function: of a pytree (see `replicate`) and of arrays [b ...], to a pytree of arrays [b ...].

    Returns:
      A function that starts the same of a whole batch, whose size the devices must divide. It
      returns a function without arguments that waits for the results, and gives them as NumPy's.
    """
    # Not jit with sharded arguments: what orders or compacts a whole batch would be computed across
    # the devices.
    mapped = jax.pmap(
      lambda same, arrays: function(same, *arrays), in_axes=(None, 0), devices=self._devices
    )

    def start(same: Tree, *arrays: np.ndarray) -> Callable[[], _Result]:
      results = mapped(same, [a.reshape(self._count, -1, *a.shape[1:]) for a in arrays])
      return lambda: jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:]), results)

    return start

  def shard(self, *arrays: np.ndarray) -> list[Array]:
    """Splits the first axis of arrays over the devices, which must divide it."""
    return [jax.device_put(array, self._split) for array in arrays]

  def items(self, array: Array) -> list[Callable[[], Array]]:
    """Returns a function for each item of what was computed of split arrays, [b ...].

    It gives the item [...] on the first device, where programs for single items are compiled.
    """
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}

    def item(part: Array, index: int) -> Array:
      return jax.device_put(part[index], self._devices[0])

    return [
      functools.partial(item, part, index)
      for _, part in sorted(parts.items(), key=lambda placed: placed[0])
      for index in range(len(part))
    ]


def meet() -> None:
  """Lets the devices of several processes meet in a first, small sum.

  On CPUs all must come to their first sum within half a minute, and to later ones at any time: a
  program that takes one of them longer to compile must not be the first.
  """
  if jax.process_count() > 1:
    add = parallel(lambda x: jax.lax.psum(x, AXIS), in_axes=(0,))
    with hosts.lost_processes():
      jax.block_until_ready(add(np.ones(jax.local_device_count(), np.float32)))


def make_train_step(
  optimizer: optax.GradientTransformation,
  forward: Forward,
  losses: LossFn,
  counts: CountFn = lambda outputs, targets: {},
  *,
  weights: Mapping[str, float] | None = None,
  ema: float = 0.0,
  freeze: Sequence[str] = (),
  accumulate: int = 1,
  norms: bool = False,
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
    accumulate: parts that each device works through its share of the batch in, one after another,
      so that the memory is that of a part. Losses are still divided by the counts of the global
      batch, and the step is that of the whole batch; but batch norm takes its statistics from one
      part at a time, and updates the running ones with each.
    norms: whether `metrics` holds `norms` too, float32 [2] by part of the network: the norms of its
      gradient and of its update, which the rate is in.

  Returns:
    The step. `batch` has a leading axis of local devices (see `shard`); `key` is the run's key,
    the same at every step: all randomness is a function of (key, step, position in the global
    batch), so that neither a restart nor the number of devices or parts changes what is drawn.
    `metrics` holds `loss`, `losses` (mean and count by name), `grad_norm` (over the trained
    parameters) and the counts; of a state with a scale of the loss also `skipped`, 1 if the
    gradient overflowed, so that only the scale changed. The input state is donated.
  """
  backward = _Backward(forward, losses, counts, weights or {}, freeze)

  def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(key, state.step)
    if accumulate == 1:
      found = backward(state, batch, key)
    else:
      found = backward.in_parts(state, batch, key, accumulate)
    loss, means, counted, grads = jax.lax.psum(
      (found.loss, found.means, found.counts, found.grads), AXIS
    )
    grads = loss_scale.unscaled(grads, state.loss_scale)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = dataclasses.replace(
      state,
      step=state.step + 1,
      params=params,
      batch_stats=found.batch_stats,
      opt_state=opt_state,
      ema=_average(params, state, ema) if ema else state.ema,
    )
    if state.loss_scale:
      after, loss, skipped = _unless_overflow(state, after, loss, grads)
      counted = {**counted, "skipped": skipped}
    metrics = {
      "loss": loss,
      "losses": {name: (mean, found.totals[name]) for name, mean in means.items()},
      "grad_norm": optax.tree.norm(grads),
      **counted,
    }
    if norms:
      pairs = {name: (grads[name], updates[name]) for name in grads}
      metrics["norms"] = {n: jnp.stack([*map(optax.tree.norm, p)]) for n, p in pairs.items()}
    return after, metrics

  return parallel(step, in_axes=(None, 0, None), donate=True)


@flax.struct.dataclass
class _Gradient:
  """Gradient of the loss on one device; nothing but `totals` is summed over the devices.

  Attributes:
    grads: gradient of the loss times its scale, a tree as the parameters.
    loss: the device's share of the loss.
    means: the device's share of each loss by name, without its weight.
    totals: count of each loss by name, over the global batch.
    batch_stats: updated running statistics of the norms.
    counts: integers to log, by name.
  """

  grads: Params
  loss: Array
  means: dict[str, Array]
  totals: dict[str, Array]
  batch_stats: Variables
  counts: Counts


@dataclasses.dataclass(frozen=True)
class _Backward:
  """The pass over a device's share of a batch, forward and backward.

  Attributes:
    forward: as for `make_train_step`.
    losses: as for `make_train_step`.
    counts: as for `make_train_step`.
    weights: as for `make_train_step`.
    freeze: as for `make_train_step`.
  """

  forward: Forward
  losses: LossFn
  counts: CountFn
  weights: Mapping[str, float]
  freeze: Sequence[str]

  def __call__(
    self, state: TrainState, batch: Batch, key: Array, totals: dict[str, Array] | None = None
  ) -> _Gradient:
    """Computes the gradient at once; losses are divided by `totals`, or else the batch's own."""
    fixed = frozen(state.params, self.freeze)

    def total_loss(params: Params) -> tuple[Array, _Gradient]:
      # Stop the gradient here: zeroing updates in the optimizer would still pay for the backward
      # pass.
      params = jax.tree.map(lambda p, f: jax.lax.stop_gradient(p) if f else p, params, fixed)
      variables = {"params": params, "batch_stats": state.batch_stats}
      outputs, targets, updated = self.forward(variables, batch, key, ["batch_stats"])
      parts = self.losses(outputs, targets)
      divisors = _totals(parts) if totals is None else totals
      # A loss of no pixel has gradient 0, not 0 / 0.
      means = {n: s / jnp.where(divisors[n] > 0, divisors[n], 1.0) for n, (s, _) in parts.items()}
      total = jnp.float32(0)
      for name, mean in means.items():
        total += self.weights.get(name, 1.0) * mean
      found = _Gradient(
        grads={},  # what is differentiated can't know it
        loss=total,
        means=means,
        totals=divisors,
        batch_stats=updated.get("batch_stats", {}),
        counts=self.counts(outputs, targets),
      )
      return loss_scale.scaled(total, state.loss_scale), found

    (_, found), grads = jax.value_and_grad(total_loss, has_aux=True)(state.params)
    return dataclasses.replace(found, grads=grads)

  def in_parts(self, state: TrainState, batch: Batch, key: Array, parts: int) -> _Gradient:
    """Computes the same gradient, but for batch norm, from equal parts one after another."""

    def count(_: None, part: Batch) -> tuple[None, dict[str, Array]]:
      # Of what the counts don't depend on, such as the network where they are pixels with a label,
      # XLA keeps nothing.
      variables = {"params": state.params, "batch_stats": state.batch_stats}
      found = self.losses(*self.forward(variables, part, key, ["batch_stats"])[:2])
      return None, {name: count for name, (_, count) in found.items()}

    counted = _scan(count, None, batch, parts)[1]
    totals = jax.lax.psum(jax.tree.map(lambda x: x.sum(0), counted), AXIS)

    def add(carry: tuple[Variables, Params], part: Batch) -> tuple[tuple[Variables, Params], Tree]:
      batch_stats, sums = carry
      found = self(dataclasses.replace(state, batch_stats=batch_stats), part, key, totals)
      sums = jax.tree.map(jnp.add, sums, found.grads)
      return (found.batch_stats, sums), (found.loss, found.means, found.counts)

    start = state.batch_stats, jax.tree.map(jnp.zeros_like, state.params)
    (batch_stats, grads), logged = _scan(add, start, batch, parts)
    loss, means, counts = jax.tree.map(lambda x: x.sum(0), logged)
    return _Gradient(
      grads=grads,
      loss=loss,
      means=means,
      totals=totals,
      batch_stats=batch_stats,
      counts=counts,
    )


def _unless_overflow(
  before: TrainState, after: TrainState, loss: Array, grads: Params
) -> tuple[TrainState, Array, Array]:
  """(state, loss, 1 if it was skipped) after a step.

  A gradient that overflows changes nothing but the scale and the number of the step. Where no lower
  scale is left to try, the loss becomes NaN.
  """
  finite = loss_scale.is_finite(grads)
  kept = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old),
    (after.params, after.batch_stats, after.opt_state, after.ema),
    (before.params, before.batch_stats, before.opt_state, before.ema),
  )
  params, batch_stats, opt_state, ema = kept
  skipped = ~finite & loss_scale.may_fall(before.loss_scale)
  state = dataclasses.replace(
    after,
    params=params,
    batch_stats=batch_stats,
    opt_state=opt_state,
    ema=ema,
    loss_scale=loss_scale.after(before.loss_scale, finite),
  )
  return state, jnp.where(finite | skipped, loss, jnp.nan), skipped.astype(jnp.int32)


def _totals(parts: Losses) -> dict[str, Array]:
  """The counts of the global batch by name, known before the backward pass."""
  return jax.lax.psum(jax.lax.stop_gradient({n: c for n, (_, c) in parts.items()}), AXIS)


def _scan(
  function: Callable[[_Carry, Batch], tuple[_Carry, _Result]],
  carry: _Carry,
  batch: Batch,
  parts: int,
) -> tuple[_Carry, _Result]:
  """`lax.scan` over equal parts of this device's share of a batch, which know which they are."""

  def one(carry: _Carry, numbered: tuple[Array, Batch]) -> tuple[_Carry, _Result]:
    index, part = numbered
    with part_of_batch(index, parts):
      return function(carry, part)

  split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
  return jax.lax.scan(one, carry, (jnp.arange(parts), split))


def _average(params: Params, state: TrainState, decay: float) -> Params:
  """The moving average of the parameters after one more step."""
  # As in TensorFlow's moving average: early steps count for more, so that the average is not held
  # back by the initial values.
  current = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
  return optax.incremental_update(params, state.ema, 1.0 - current)


def make_moments_step(
  forward: Forward, accumulate: int = 1
) -> Callable[[TrainState, Batch, Array], Variables]:
  """Makes `step(state, batch, key) -> moments`: what each norm sees in a training batch.

  Args:
    forward: the network's training pass, as for `make_train_step`.
    accumulate: parts that the batch is worked through in, as in `make_train_step`; the moments are
      the means over the parts.

  Returns:
    The step, mapped over the devices; its results go into `jseg.nn.norm.average_moments`.
  """

  def step(state: TrainState, batch: Batch, key: Array) -> Variables:
    def moments(_: None, part: Batch) -> tuple[None, Variables]:
      updated = forward(state.variables(), part, key, ["batch_stats", "moments"])[-1]
      return None, updated["moments"]

    if accumulate == 1:
      return moments(None, batch)[1]
    return jax.tree.map(lambda x: x.mean(0), _scan(moments, None, batch, accumulate)[1])

  return parallel(step, in_axes=(None, 0, None))
