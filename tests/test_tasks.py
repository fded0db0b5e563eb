"""What losses of a task weigh."""

import jax
import jax.numpy as jnp
import numpy as np

from jseg.losses import make_loss
from jseg.tasks.semantic import make_task_loss
from jseg.types import IGNORE, Outputs

LOGITS = jnp.array([[[[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]]])
LABEL = jnp.array([[[0, 0, IGNORE]]])


def entropies():
  log_p = jax.nn.log_softmax(LOGITS[0, 0])
  return -float(log_p[0, 0]), -float(log_p[1, 0])


def test_border_weights_are_added_to_the_class_weights_and_divide_nothing():
  # Equation 2 of U-Net: w = w_c + border; the count stays that of the pixels.
  border = jnp.array([[[0.0, 4.0, 9.0]]])
  loss = make_task_loss(make_loss(), {}, jnp.array([2.0, 7.0]))
  total, count = loss(Outputs(LOGITS), LABEL, border)
  first, second = entropies()
  np.testing.assert_allclose(total, 2 * first + (2 + 4) * second, rtol=1e-6)
  assert float(count) == 2
  total, _ = make_task_loss(make_loss(), {})(Outputs(LOGITS), LABEL, border)
  np.testing.assert_allclose(total, first + (1 + 4) * second, rtol=1e-6)


def test_class_weights_make_a_weighted_mean():
  total, count = make_task_loss(make_loss(), {}, jnp.array([2.0, 7.0]))(Outputs(LOGITS), LABEL)
  np.testing.assert_allclose(total / count, sum(entropies()) / 2, rtol=1e-6)
  assert float(count) == 4


def test_auxiliary_outputs_count_by_their_weight():
  outputs = Outputs(LOGITS, {"side": 2 * LOGITS})
  total, count = make_task_loss(make_loss(), {"side": 0.4})(outputs, LABEL)
  side, _ = make_loss()(2 * LOGITS, LABEL)
  np.testing.assert_allclose(total, sum(entropies()) + 0.4 * side, rtol=1e-6)
  assert float(count) == 2
