"""Programs that run once."""

import jax
import jax.numpy as jnp
import pytest

from jseg.parameters import jit_once


@pytest.mark.parametrize(
  ("flags", "options"),
  [("", {"xla_backend_optimization_level": 1}), ("--xla_backend_optimization_level=0", None)],
)
def test_what_runs_once_is_optimized_little_unless_xla_flags_say_how(monkeypatch, flags, options):
  given, jit = [], jax.jit

  def record(function, compiler_options):
    given.append(compiler_options)
    return jit(function, compiler_options=compiler_options)

  monkeypatch.setenv("XLA_FLAGS", flags)
  monkeypatch.setattr(jax, "jit", record)
  # XLA takes the options, or would end here.
  assert jit_once(lambda x: 2 * x + 1)(jnp.float32(3)) == 7
  assert given == [options]


def test_what_runs_once_may_be_part_of_another_program(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")
  # As in `jax.eval_shape(create_train_state, ...)`: JAX takes options for the outermost jit alone.
  shape = jax.eval_shape(lambda x: jit_once(jnp.cumsum)(x), jnp.zeros(3))
  assert shape.shape == (3,)
  assert jax.jit(lambda x: jit_once(jnp.cumsum)(x))(jnp.ones(3))[-1] == 3
