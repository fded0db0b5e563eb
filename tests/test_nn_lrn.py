"""Local response normalization against PyTorch's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.nn import local_response_norm


def torch_local_response_norm(x, size, alpha, beta):
  """torch.nn.functional.local_response_norm: padding of zeros, counted in the mean of squares."""
  channels = x.shape[-1]
  y = np.empty_like(x, dtype=np.float64)
  for c in range(channels):
    near = x[..., max(0, c - size // 2) : min(channels, c + size // 2 + 1)]
    y[..., c] = x[..., c] / (1 + alpha * np.square(near).sum(-1) / size) ** beta
  return y


@pytest.mark.parametrize(
  ("channels", "size", "alpha", "beta"),
  [(7, 5, 1e-4, 0.75), (7, 5, 2.0, 0.75), (3, 5, 1.0, 0.5), (6, 3, 1.0, 1.0)],
)
def test_equals_torch(channels, size, alpha, beta):
  x = np.random.default_rng(0).normal(0, 20, (2, 3, 4, channels))
  y = local_response_norm(jnp.asarray(x, jnp.float32), size, alpha=alpha, beta=beta)
  np.testing.assert_allclose(y, torch_local_response_norm(x, size, alpha, beta), rtol=1e-5)


def test_by_hand():
  # Only the middle channel has both neighbors: 1 + 3 / 3 (1 + 4 + 4) = 10.
  y = local_response_norm(jnp.array([[1.0, 2.0, 2.0]]), 3, alpha=3.0, beta=1.0)
  np.testing.assert_allclose(y, [[1 / 6, 2 / 10, 2 / 9]], rtol=1e-6)


def test_squares_of_bfloat16_are_summed_in_float32():
  # In bfloat16 the ones after 1,024 would be lost, and the result 6% larger.
  x = jnp.ones((1, 61), jnp.bfloat16).at[0, 30].set(32)
  y = jax.jit(lambda x: local_response_norm(x, 61, alpha=61.0, beta=1.0))(x)  # 61 slices
  assert y.dtype == jnp.bfloat16
  assert float(y[0, 30]) == pytest.approx(32 / (1 + 1024 + 60), rel=2**-7)
