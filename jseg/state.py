"""All that training changes, in one pytree."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jseg.types import Array


@flax.struct.dataclass
class TrainState:
  """State of a training run; a pure function of (config, seed, step).

  Attributes:
    step: int32, number of finished steps.
    params: parameters of the network.
    batch_stats: running statistics of its norms; empty if it has none.
    opt_state: of optax.
    ema: exponential moving average of `params`; empty if it is off.
  """

  step: Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any

  def variables(self) -> dict[str, Any]:
    """What evaluation applies the model with: the averaged parameters where there are any."""
    return {"params": self.ema or self.params, "batch_stats": self.batch_stats}


def create_train_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  key: Array,
  image_shape: tuple[int, ...],
  *,
  ema: bool = False,
) -> TrainState:
  """A new state for images of `image_shape` [h w c] (any size the model takes)."""

  def init(key):
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
    params = variables["params"]
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get("batch_stats", {}),
      opt_state=optimizer.init(params),
      # Copies: the step donates its state, and one buffer can't be donated twice.
      ema=jax.tree.map(jnp.copy, params) if ema else {},
    )

  # XLA unrolls the random numbers of small kernels so far that LLVM's full optimisation takes a
  # minute over a program that runs once, for milliseconds.
  options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
  return jax.jit(init, compiler_options=options)(key)
