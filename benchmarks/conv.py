"""Speed of jseg's convolution against XLA's, and of a U-Net of each.

  python benchmarks/conv.py                # GFLOP/s of forward and gradients, by shape
  python benchmarks/conv.py --model unet   # one training step, plain Flax beside jseg

Both sides run interleaved and the best time of each counts, as another process may hold a core.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax import lax

from jseg import models
from jseg.nn import conv
from jseg.types import Array, Outputs

_MODEL = flags.DEFINE_enum("model", None, ["unet"], "time a training step of this network")
_SECONDS = flags.DEFINE_float("seconds", 1.0, "time spent on each side of a comparison")
_BATCH = flags.DEFINE_integer("batch", 16, "images in the network's batch")
_SIZE = flags.DEFINE_integer("size", 128, "height and width of the network's images")
_WIDTHS = flags.DEFINE_list("widths", ["16", "32", "64", "128"], "widths of the U-Net")

# batch, height = width or size of a volume, channels in, channels out, kernel, stride, rate
_SHAPES = (
  (2, 64, 256, 64, 1, 1, 1),
  (2, 64, 64, 256, 1, 1, 1),
  (2, 32, 1024, 256, 1, 1, 1),
  (2, 32, 2048, 512, 1, 1, 1),
  (2, 64, 256, 512, 1, 2, 1),
  (2, 64, 64, 64, 3, 1, 1),
  (2, 128, 64, 64, 3, 1, 1),
  (2, 32, 128, 128, 3, 1, 1),
  (2, 64, 128, 128, 3, 2, 1),
  (2, 32, 256, 256, 3, 1, 2),
  (2, 32, 512, 512, 3, 1, 4),
  (2, 32, 2048, 256, 3, 1, 12),
  (2, 33, 512, 256, 3, 1, 18),
  (2, 32, 512, 256, 3, 1, 36),
  (2, 256, 64, 64, 3, 1, 1),
  (2, 257, 64, 64, 3, 1, 1),
  (2, 128, 128, 128, 3, 1, 1),
  (2, 64, 256, 256, 3, 1, 1),
  (2, 32, 512, 512, 3, 1, 1),
  (1, (32, 64, 64), 32, 64, 3, 1, 1),
  (1, (32, 64, 64), 64, 64, 3, 1, 1),
  (1, (16, 32, 32), 128, 128, 3, 1, 1),
  (2, 256, 3, 64, 7, 2, 1),
  (16, 128, 3, 16, 3, 1, 1),
  (16, 128, 16, 16, 3, 1, 1),
  (16, 128, 32, 16, 3, 1, 1),
  (16, 64, 32, 32, 3, 1, 1),
  (16, 64, 64, 32, 3, 1, 1),
  (16, 32, 64, 64, 3, 1, 1),
  (16, 16, 128, 128, 3, 1, 1),
)


def best_times(sides: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[float]:
  """Shortest time of each side in seconds; they run in turns."""
  for f, args in sides:
    jax.block_until_ready(f(*args))
  best, spent = [float("inf")] * len(sides), 0.0
  while spent < _SECONDS.value * len(sides):
    for i, (f, args) in enumerate(sides):
      start = time.perf_counter()
      jax.block_until_ready(f(*args))
      elapsed = time.perf_counter() - start
      best[i] = min(best[i], elapsed)
      spent += elapsed
  return best


def xla_conv(x: Array, kernel: Array, *, stride: int, rate: int) -> Array:
  """XLA's own convolution."""
  rank = x.ndim - 2
  spatial = "DHW"[-rank:]
  return lax.conv_general_dilated(
    x,
    kernel,
    (stride,) * rank,
    "SAME",
    rhs_dilation=(rate,) * rank,
    dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
  )


def run(
  fn: Callable[[Array, Array], Array], part: int | None, x: Array, kernel: Array, dy: Array
) -> Array:
  """The convolution, or its gradient for argument `part`."""
  return fn(x, kernel) if part is None else jax.vjp(fn, x, kernel)[1](dy)[part]


def compare_shapes() -> None:
  """Prints GFLOP/s by shape, XLA's -> jseg's."""
  print(f"{'shape':50}{'forward':>14}{'kernel grad':>14}{'input grad':>14}  GFLOP/s, XLA > jseg")
  rng = np.random.default_rng(0)
  for b, size, c, f, k, stride, rate in _SHAPES:
    size = (size, size) if isinstance(size, int) else size
    window = (k,) * len(size)
    x = jnp.asarray(rng.normal(size=(b, *size, c)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*window, c, f)), jnp.float32)
    theirs = functools.partial(xla_conv, stride=stride, rate=rate)
    ours = functools.partial(conv, strides=stride, dilation=rate)
    dy = ours(x, kernel)
    flop = 2 * dy.size * kernel.size // f
    cells = []
    for part in (None, 1, 0):  # forward, gradient of the kernel, of the input
      sides = [
        (jax.jit(functools.partial(run, fn, part)), (x, kernel, dy)) for fn in (theirs, ours)
      ]
      cells.append(" > ".join(f"{flop / t / 1e9:.0f}" for t in best_times(sides)))
    shape, taps = " x ".join(map(str, x.shape)), "x".join(map(str, window))
    name = f"{shape} -> {f}, {taps}, stride {stride}, rate {rate}"
    print(f"{name:50}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


class PlainUNet(nn.Module):
  """The U-Net one writes with Flax's own layers."""

  num_classes: int
  widths: Sequence[int]

  @nn.compact
  def __call__(self, x: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of jseg's U-Net, for sizes that halve evenly."""

    def block(x: Array, width: int) -> Array:
      for _ in range(2):
        x = nn.Conv(width, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
      return x

    skips = []
    for level, width in enumerate(self.widths):
      x = block(nn.max_pool(x, (2, 2), (2, 2)) if level else x, width)
      skips.append(x)
    x = skips.pop()
    for width in reversed(self.widths[:-1]):
      x = nn.ConvTranspose(width, (2, 2), (2, 2))(x)
      x = block(jnp.concatenate([skips.pop(), x], -1), width)
    return Outputs(nn.Conv(self.num_classes, (1, 1))(x))


def compare_models() -> None:
  """Prints seconds of a training step and of inference, plain Flax beside jseg."""
  widths = tuple(map(int, _WIDTHS.value))
  rng = np.random.default_rng(0)
  shape = (_BATCH.value, _SIZE.value, _SIZE.value)
  image = jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32)
  label = jnp.asarray(rng.integers(0, 5, shape))
  optimizer = optax.sgd(0.01, momentum=0.9)

  steps, forwards = [], []
  for model in (PlainUNet(5, widths), models.create("unet", 5, widths=widths)):
    variables = jax.jit(model.init)(jax.random.key(0), image[:1])

    def step(state: Any, image: Array, label: Array, model: nn.Module = model) -> Any:
      params, stats, opt_state = state

      def loss(params: Any) -> tuple[Array, Any]:
        outputs, new = model.apply(
          {"params": params, "batch_stats": stats}, image, train=True, mutable=["batch_stats"]
        )
        ce = optax.softmax_cross_entropy(outputs.logits, jax.nn.one_hot(label, 5))
        return ce.mean(), new["batch_stats"]

      grads, stats = jax.grad(loss, has_aux=True)(params)
      updates, opt_state = optimizer.update(grads, opt_state)
      return optax.apply_updates(params, updates), stats, opt_state

    def forward(variables: Any, image: Array, model: Any = model) -> Array:
      return model.apply(variables, image).logits

    params = variables["params"]
    state = (params, variables["batch_stats"], optimizer.init(params))
    steps.append((jax.jit(step), (state, image, label)))
    forwards.append((jax.jit(forward), (variables, image)))
  for name, sides in (("training step", steps), ("inference", forwards)):
    plain, ours = best_times(sides)
    print(f"{name:14} plain Flax {plain:.3f} s, jseg {ours:.3f} s, ratio {plain / ours:.2f}")


def main(argv: Sequence[str]) -> None:
  """Runs what the flags ask for."""
  del argv
  if _MODEL.value:
    compare_models()
  else:
    compare_shapes()


if __name__ == "__main__":
  app.run(main)
