"""All that training changes, in one pytree."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jseg.loss_scale import LossScale, begin
from jseg.nn.initializers import initialize
from jseg.types import Array, Params, Variables


def run_keys(seed: int) -> tuple[Array, Array]:
  """The random keys of a run: (of its initialization, of its steps)."""
  init_key, key = jax.random.split(jax.random.key(seed))
  return init_key, key


@flax.struct.dataclass
class TrainState:
  """State of a training run; a pure function of (config, seed, step).

  Attributes:
    step: int32, number of finished steps.
    params: parameters of the network.
    batch_stats: running statistics of its norms; empty if it has none.
    opt_state: state of the optimizer.
    ema: exponential moving average of `params`; empty if it is off.
    loss_scale: scale of the loss (`jseg.loss_scale`); empty unless the network computes in float16.
  """

  step: Array
  params: Params
  batch_stats: Variables
  opt_state: optax.OptState
  ema: Params
  loss_scale: LossScale = flax.struct.field(default_factory=dict)

  def variables(self) -> Variables:
    """Variables to evaluate with: the averaged parameters where there are any."""
    return {
      "params": self.ema if jax.tree.leaves(self.ema) else self.params,
      "batch_stats": self.batch_stats,
    }


def parameter_order(model: nn.Module, image_shape: tuple[int, ...]) -> list[str]:
  """Returns the names of a network's parameters in the order in which it makes them.

  Args:
    model: network.
    image_shape: shape [h w c] or [d h w c] of an image that the model takes.
  """
  names: list[str] = []

  def collect(tree: Params, above: str = "") -> None:
    for name, child in tree.items():
      if isinstance(child, Mapping):
        collect(child, f"{above}{name}/")
      else:
        names.append(f"{above}{name}")

  def init(key: Array) -> None:
    # Inside, as trees that leave a traced function are sorted by name.
    collect(model.init(key, jnp.zeros((1, *image_shape)), train=False)["params"])

  jax.eval_shape(init, jax.random.key(0))
  return names


def create_train_state(
  model: nn.Module,
  optimizer: optax.GradientTransformation,
  key: Array,
  image_shape: tuple[int, ...],
  *,
  ema: bool = False,
) -> TrainState:
  """Makes a new state.

  Args:
    model: network.
    optimizer: optimizer whose state it holds.
    key: random key of the initial values.
    image_shape: shape [h w c] or [d h w c] of an image that the model takes.
    ema: whether there is a moving average of the parameters.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def begin_with(variables: Variables) -> TrainState:
    params = variables["params"]
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get("batch_stats", {}),
      opt_state=optimizer.init(params),
      # Copies: the step donates its state, and one buffer can't be donated twice.
      ema=jax.tree.map(jnp.copy, params) if ema else {},
      loss_scale=begin(getattr(model, "dtype", None)),
    )

  return begin_with(initialize(model, key, image_shape))
