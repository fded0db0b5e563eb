"""Equal layers are traced and lowered once."""

import jax
import jax.numpy as jnp
import pytest

from jseg.nn import Conv, Norm, add_relu, avg_pool, max_pool

KERNEL, SCALE = jnp.ones((3, 3, 8, 8)), {"params": {"scale": jnp.ones(8), "bias": jnp.ones(8)}}
STATISTICS = {"batch_stats": {"mean": jnp.ones(8), "var": jnp.ones(8)}}


def convolved(kernel):
  layer = Conv(8, kernel.shape[:2], use_bias=False)
  return lambda x: layer.apply({"params": {"kernel": kernel}}, x)


@pytest.mark.parametrize(
  ("layer", "operation"),
  [
    (convolved(KERNEL), "convolution"),
    (convolved(KERNEL[:1, :1]), "dot_general"),
    (lambda x: Norm().apply(SCALE | STATISTICS, x, train=False), "subtract"),
    (lambda x: add_relu(x, 2 * x), "case"),
    (lambda x: max_pool(x, 3, 1, padding=1), "slice"),
    (lambda x: avg_pool(x, 3, 1, padding=1), "divide"),
  ],
  ids=["conv", "pointwise", "norm", "add_relu", "max_pool", "avg_pool"],
)
def test_ten_equal_layers_take_the_operations_of_two(layer, operation):
  def operations(depth):
    def chain(x):
      for _ in range(depth):
        x = layer(x)
      return x.sum()

    x = jnp.zeros((2, 6, 6, 8))
    return jax.jit(jax.value_and_grad(chain)).lower(x).as_text().count(f"stablehlo.{operation}")

  assert operations(10) == operations(2) > 0
