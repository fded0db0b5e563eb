"""What the benchmarks against torchvision share: a training step, and the table."""

import functools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from jseg.memory import compile_for
from jseg.nn.initializers import initialize

Side = Callable[[], Any]
Loss = Callable[..., tuple[jax.Array, Any]]


def sides(
  model: nn.Module, loss: Loss, image: Any, truth: Any, variables: Any = None
) -> tuple[int, Side, Side]:
  """Number of parameters, a training step and inference, of a network of jseg.

  Args:
    model: the network.
    loss: `(variables, key, image, truth) -> (loss, updated collections)`.
    image: float32 [b h w 3].
    truth: what the loss wants.
    variables: the network's; new ones if None.
  """
  image, truth = jax.device_put((image, truth))
  if variables is None:
    variables = initialize(model, jax.random.key(0), image.shape[1:])
  optimizer = optax.sgd(0.01, momentum=0.9)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: Any, image: jax.Array, truth: Any) -> Any:
    params, stats, opt_state, key = state
    key, draw = jax.random.split(key)

    def of_params(params: Any) -> tuple[jax.Array, Any]:
      return loss({"params": params, "batch_stats": stats}, draw, image, truth)

    grads, new = jax.grad(of_params, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), new.get("batch_stats", {}), opt_state, key

  forward = jax.jit(model.apply)

  @functools.partial(jax.jit, donate_argnums=0)
  def begin(variables: Any) -> Any:
    params, stats = variables["params"], variables.get("batch_stats", {})
    return params, stats, optimizer.init(params), jax.random.key(1)

  state = None
  trained = functools.cache(lambda: compile_for(step, state, image, truth))
  inferred = functools.cache(lambda: compile_for(forward, variables, image))

  def train() -> None:
    nonlocal state
    if state is None:  # of a copy, as a step takes its state over; by NumPy, which compiles nothing
      state = begin(jax.tree.map(lambda a: jax.device_put(np.array(a)), dict(variables)))
    state = jax.block_until_ready(trained()(state, image, truth))

  def infer() -> Any:
    return jax.block_until_ready(inferred()(variables, image))

  return sum(a.size for a in jax.tree.leaves(variables["params"])), train, infer


def seconds(side: Side) -> float:
  """Of one call."""
  start = time.perf_counter()
  side()
  return time.perf_counter() - start


def header() -> None:
  """Prints the head of the table."""
  print(f"{'':36}{'torchvision':>12}{'jseg':>8}{'ratio':>7}{'first call':>12}")


def compare(name: str, theirs: Side, ours: Side, rounds: int) -> None:
  """Prints the best time of each side, run in turns, and that of our first call, which compiles."""
  first = seconds(ours)
  seconds(theirs)
  a, b = np.min([(seconds(theirs), seconds(ours)) for _ in range(rounds)], 0)
  print(f"{name:36}{a:10.3f} s{b:6.3f} s{a / b:7.2f}{first:10.1f} s", flush=True)


def compare_networks(
  name: str, theirs: tuple[int, Side, Side], ours: tuple[int, Side, Side], rounds: int
) -> None:
  """Compares a training step and inference of networks of the same number of parameters."""
  assert theirs[0] == ours[0], "the networks must have the same number of parameters"
  compare(f"{name} training step", theirs[1], ours[1], rounds)
  compare(f"{name} inference", theirs[2], ours[2], rounds)
