"""Convolutions beside XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jseg.nn import conv


def reference(x, kernel, *, strides=1, padding="SAME", dilation=1, groups=1):
  rank = x.ndim - 2

  def per(v):
    return (v,) * rank if isinstance(v, int) else v

  pads = [(padding, padding)] * rank if isinstance(padding, int) else padding
  spatial = "DHW"[-rank:]
  return lax.conv_general_dilated(
    x,
    kernel,
    per(strides),
    pads,
    rhs_dilation=per(dilation),
    feature_group_count=groups,
    dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
    precision=lax.Precision.HIGHEST,
  )


def arrays(shape, kernel_shape, seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return (jnp.asarray(rng.normal(size=s), dtype) for s in (shape, kernel_shape))


def assert_equals_xla(shape, kernel_shape, settings, dtype=jnp.float32):
  """The convolution and both of its gradients equal XLA's up to rounding."""
  x, kernel = arrays(shape, kernel_shape, dtype=dtype)

  def both(x, kernel, dy):
    y, pull = jax.vjp(lambda x, kernel: conv(x, kernel, **settings), x, kernel)
    expected, expected_pull = jax.vjp(lambda x, k: reference(x, k, **settings), x, kernel)
    dy = dy[: y.size].reshape(y.shape)
    return (y, *pull(dy)), (expected, *expected_pull(dy))

  dy = jnp.asarray(np.random.default_rng(1).normal(size=4096), dtype)
  ours, theirs = jax.jit(both)(x, kernel, dy)
  for name, a, b in zip(("output", "dx", "dkernel"), ours, theirs, strict=True):
    # Some hundred products of size 1, added in another order; one of them left out is off by 1.
    assert a.dtype == b.dtype == dtype
    tolerance = (1e-5 if dtype == jnp.float32 else 1e-13) * abs(b).max()
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)
