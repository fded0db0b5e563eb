"""Random initial values of kernels, for which XLA compiles one program and not one for each shape.

Each of JAX's random numbers depends on its key and its place alone. So outside of traced functions
they are drawn in parts of one size; the values are those of `jax.random`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.extend import random as extend
from jax.interpreters import batching, mlir

from jseg.types import Array, Variables

# Numbers that are drawn at once.
_PART = 2**18
# Bits by which Threefry-2x32 rotates (Salmon et al. 2011, "Parallel random numbers", table 2).
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))

OfShape: TypeAlias = Callable[[Sequence[int]], float]


def normal(deviation: float | OfShape) -> nn.initializers.Initializer:
  """Initializer N(0, deviation).

  Args:
    deviation: the standard deviation, or a function of the shape that computes it.
  """
  return functools.partial(_init, jax.random.normal, deviation)


def uniform(bound: float | OfShape) -> nn.initializers.Initializer:
  """Initializer whose values are uniform in [-bound, bound).

  Args:
    bound: the bound, or a function of the shape that computes it.
  """
  return functools.partial(_init, _between_ones, bound)


def root_of_inputs(scale: float) -> OfShape:
  """sqrt(scale / n) of a kernel [... c features], with n the number of inputs of an output."""
  return lambda shape: np.sqrt(np.float32(scale / math.prod(shape[:-1])))


def initialize(model: nn.Module, key: Array, image_shape: Sequence[int]) -> Variables:
  """Makes the variables of a network as `model.init` does, without compiling the network.

  XLA would compile one program of all initial values, for 6 to 9 s on two cores. Here each is
  computed by itself, and nothing of what the network does with an image.

  Args:
    model: network.
    key: random key of the initial values.
    image_shape: shape [h w c] or [d h w c] of an image that the model takes.

  Returns:
    Variables by collection ("params", "batch_stats", ...).
  """
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  program, shapes = jax.make_jaxpr(model.init, return_shape=True)(key, image)
  values = core.jaxpr_as_fun(_without_network(program))(key, np.zeros(image.shape, np.float32))
  return jax.tree.unflatten(jax.tree.structure(shapes), map(jax.device_put, values))


def _without_network(program: core.ClosedJaxpr) -> core.ClosedJaxpr:
  """The steps that the results need, with arrays of one known number as NumPy's constants."""
  wanted, steps, known = set(program.jaxpr.outvars), [], {}
  for step in reversed(program.eqns):
    if not wanted.intersection(step.outvars):
      continue
    computed = [value for value in step.invars if isinstance(value, core.Var)]
    if step.primitive is lax.broadcast_in_dim_p and not computed:
      (number,), (array,) = step.invars, step.outvars
      known[array] = np.full(array.aval.shape, number.val, array.aval.dtype)
    else:
      wanted.update(computed)
      steps.append(step)
  names = [*program.jaxpr.constvars, *known]
  jaxpr = program.jaxpr.replace(eqns=steps[::-1], constvars=names)
  return core.ClosedJaxpr(jaxpr, [*program.consts, *known.values()])


def _between_ones(key: Array, shape: Sequence[int], dtype: jax.typing.DTypeLike) -> Array:
  return jax.random.uniform(key, shape, dtype, -1)


def _init(
  draw: Callable[..., Array],
  scale: float | OfShape,
  key: Array,
  shape: Sequence[int],
  dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
  """Random numbers times a scale, which may be a function of the shape."""
  factor = jnp.dtype(dtype).type(scale(shape) if callable(scale) else scale)
  size = math.prod(shape)
  if not (
    jnp.dtype(dtype) == jnp.float32
    and 0 < size < 2**32
    and str(jax.random.key_impl(key)) == "threefry2x32"
    and jax.threefry_partitionable.value
  ):
    return draw(key, shape, dtype) * factor
  words = jax.random.key_data(key)
  return _drawn.bind(words, draw=draw, shape=tuple(shape), factor=float(factor))


def _in_one(
  words: Array, *, draw: Callable[..., Array], shape: Sequence[int], factor: float
) -> Array:
  return draw(jax.random.wrap_key_data(words, impl="threefry2x32"), shape, jnp.float32) * factor


def _in_parts(
  words: Array, *, draw: Callable[..., Array], shape: Sequence[int], factor: float
) -> Array:
  size, key = math.prod(shape), np.asarray(words)
  numbers = np.empty(size, np.float32)
  for start in range(0, size, _PART):
    part = numbers[start : start + _PART]
    drawn = np.asarray(_draw_part(draw, np.append(key, np.uint32(start))))
    np.multiply(drawn[: part.size], np.float32(factor), out=part)
  return jax.device_put(numbers.reshape(shape))


def _in_batch(words: Sequence[Array], axes: Sequence[int], **how: Any) -> tuple[Array, int]:
  return jax.vmap(lambda one: _in_one(one, **how), axes[0])(words[0]), 0


# A primitive, so that a traced initialization can be run with values, as `initialize` does.
_drawn = core.Primitive("drawn")
_drawn.def_impl(_in_parts)
_drawn.def_abstract_eval(lambda words, *, shape, **_: jax.core.ShapedArray(shape, jnp.float32))
mlir.register_lowering(_drawn, mlir.lower_fun(_in_one, multiple_results=False))
batching.primitive_batchers[_drawn] = _in_batch


@functools.partial(jax.jit, static_argnums=0)
def _draw_part(draw: Callable[..., Array], words: Array) -> Array:
  """Numbers [_PART], from a key's two words and the place of the first number: uint32 [3]."""
  return draw(jax.random.wrap_key_data(words, impl=_PLACED), (_PART,), jnp.float32)


def _bits(words: Array, width: int, shape: Sequence[int]) -> Array:
  """The 32 bits that JAX draws for each of the places from words[2] on: uint32 [shape].

  They are Threefry-2x32's of 20 rounds. JAX's own has a loop on CPUs, which takes eight times as
  long.
  """
  assert width == 32
  place = words[2] + lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
  keys = (words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(0x1BD11BDA))
  x, y = jnp.zeros_like(place) + keys[0], place + keys[1]
  for group in range(5):
    for rotation in _ROTATIONS[group % 2]:
      x += y
      y = x ^ (y << jnp.uint32(rotation) | y >> jnp.uint32(32 - rotation))
    x += keys[(group + 1) % 3]
    y += keys[(group + 2) % 3] + jnp.uint32(group + 1)
  return x ^ y


def _never(*args: object) -> Array:
  raise NotImplementedError("a key with a place is for drawing alone")


_PLACED = extend.define_prng_impl(
  key_shape=(3,), seed=_never, split=_never, random_bits=_bits, fold_in=_never, name="placed"
)

he_normal = normal(root_of_inputs(2))
"""N(0, sqrt(2 / fan_in)) (He et al. 2015, arXiv:1502.01852), not truncated."""
