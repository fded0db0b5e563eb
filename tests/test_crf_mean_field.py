"""Mean field on kernels given as matrices, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jseg.crf import Kernel, mean_field


def kernel(matrix, weight=1.0):
  matrix = jnp.asarray(matrix)
  return Kernel(lambda q: matrix @ q, jnp.asarray(weight))


UNARY = jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))
SWAP = [[0.0, 1.0], [1.0, 0.0]]  # each pixel hears the other one


def test_one_iteration_of_potts():
  # Pixel 0 hears q_1 = (.5, .5), which changes nothing; pixel 1 hears q_0 = (.75, .25).
  logits = mean_field(UNARY, [kernel(SWAP, 2.0)], None, 1)
  q = jax.nn.softmax(logits)
  ratio = np.exp(2 * 0.75 - 2 * 0.25)
  np.testing.assert_allclose(q, [[0.75, 0.25], [ratio / (1 + ratio), 1 / (1 + ratio)]], rtol=1e-6)


def test_two_iterations_are_one_after_the_other():
  kernels = [kernel(SWAP)]
  first = jax.nn.softmax(mean_field(UNARY, kernels, None, 1))
  twice = mean_field(UNARY, kernels, None, 2)
  np.testing.assert_allclose(twice, UNARY + first[::-1], rtol=1e-6)


@pytest.mark.parametrize(
  ("compatibility", "cost"),
  [
    ([-1.0, -3.0], [-0.75, -0.75]),
    # mu[l, l'] is the cost of label l beside label l'.
    ([[0.0, 2.0], [5.0, 1.0]], [2 * 0.25, 5 * 0.75 + 0.25]),
  ],
)
def test_compatibility(compatibility, cost):
  found = mean_field(UNARY, [kernel(SWAP)], jnp.asarray(compatibility), 1)
  np.testing.assert_allclose(UNARY[1] - found[1], cost, rtol=1e-6)


def test_messages_of_kernels_add_up_by_class():
  kernels = [kernel(SWAP, [1.0, 2.0]), kernel(np.eye(2), [[0.0, 1.0], [0.0, 0.0]])]
  found = mean_field(UNARY, kernels, None, 1)
  np.testing.assert_allclose(found[1] - UNARY[1], [0.75 + 0.5, 2 * 0.25], rtol=1e-6)


@pytest.mark.parametrize(("kernels", "iterations"), [([], 3), ([kernel(SWAP)], 0)])
def test_without_messages_unaries_stay(kernels, iterations):
  np.testing.assert_array_equal(mean_field(UNARY, kernels, None, iterations), UNARY)
