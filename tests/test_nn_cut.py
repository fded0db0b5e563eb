"""Slices with steps."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax import export

from jseg.nn.cut import cut

SHAPE = (4, 7, 3)
places = st.tuples(*(st.slices(n).filter(lambda s: (s.step or 1) > 0) for n in SHAPE))


@given(places=places, axes=st.integers(0, 3))
def test_it_is_what_indexing_gives(places, axes):
  x = np.arange(84).reshape(SHAPE)
  np.testing.assert_array_equal(cut(jnp.asarray(x), *places[:axes]), x[places[:axes]])


def test_it_is_a_slice_and_its_gradient_a_padding():
  def total(x):
    return cut(x, slice(None), slice(1, None, 2)).sum()

  text = jax.jit(jax.value_and_grad(total)).lower(jnp.ones(SHAPE)).as_text()
  assert "stablehlo.slice" in text
  assert "stablehlo.pad" in text
  assert "gather" not in text
  assert "scatter" not in text


def test_an_axis_of_any_size_stays_whole():
  size = export.symbolic_shape("b, 7, 3")
  x = jax.ShapeDtypeStruct(size, jnp.float32)
  odd = jax.eval_shape(lambda x: cut(x, slice(None), slice(1, None, 2)), x)
  assert odd.shape == (size[0], 3, 3)


def test_nothing_is_done_for_the_whole():
  x = jnp.ones(SHAPE)
  assert cut(x) is x
  assert cut(x, slice(None), slice(None, None, 1)) is x
