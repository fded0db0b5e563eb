"""What is lowered for CUDA holds cuDNN's convolutions, and none of the forms that are for CPUs."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jseg import models
from jseg.nn import Conv

SIZE = 513  # so that no atrous kernel has taps in nothing but padding, which are cut off


class Lowered:
  """StableHLO of a network's tiny preset for a platform.

  Attributes:
    inference: the outputs.
    gradient: the gradient of all parameters in training.
    calls: convolutions of more than one pixel that the network asks for (in inference, in
      training).
  """

  def __init__(self, name, platform):
    model = models.create(name, 3, **models.get(name).TINY)
    shape = (1, 32, 32, 32, 1) if model.ndim == 3 else (1, SIZE, SIZE, 3)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = dict(jax.eval_shape(lambda x: model.init(jax.random.key(0), x), image))
    params = variables.pop("params")
    self._calls, self._platform = 0, platform

    def infer(params, rest, image):
      return model.apply({"params": params, **rest}, image)

    def loss(params, rest, image):
      keys = {name: jax.random.key(1) for name in ("sample", "dropout")}
      variables = {"params": params, **rest}
      outputs, _ = model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=keys)
      return sum(x.sum() for x in (outputs.logits, *outputs.aux.values()))

    given = params, variables, image
    self.inference, inferring = self._text(infer, *given)
    self.gradient, training = self._text(jax.grad(loss), *given)
    self.calls = inferring, training

  def _text(self, function, *args):
    self._calls = 0
    with nn.intercept_methods(self._count):
      traced = jax.jit(function).trace(*args)
    return traced.lower(lowering_platforms=(self._platform,)).as_text(), self._calls

  def _count(self, call, args, kwargs, context):
    if isinstance(context.module, Conv) and context.method_name == "__call__":
      self._calls += max(context.module.kernel_size) > 1
    return call(*args, **kwargs)


def convolutions(text):
  """How many a program computes: equal layers are one function, which it calls as often."""
  functions = re.split(r"func\.func (?:public|private) @", text)[1:]
  bodies = {re.match(r"[\w.]+", function)[0]: function for function in functions}

  @functools.cache
  def count(name):
    called = re.findall(r"\bcall @([\w.]+)", bodies[name])
    return bodies[name].count("stablehlo.convolution(") + sum(map(count, called))

  return count("main")


@pytest.mark.parametrize("name", models.fitting(task="semantic"))
def test_convolutions_and_their_gradients_are_those_of_cudnn(name):
  found = Lowered(name, "cuda")
  inferring, training = found.calls
  assert convolutions(found.inference) >= inferring > 0
  # With the gradients of kernel and map; the image has none.
  assert convolutions(found.gradient) >= 3 * training - 2
  for text in (found.inference, found.gradient):
    assert "stablehlo.while" not in text  # columns, image by image
    assert "select_and_scatter" not in text


def test_on_a_cpu_there_are_other_forms():
  found = Lowered("deeplab_v3", "cpu")
  inferring, training = found.calls
  assert convolutions(found.inference) < inferring
  assert convolutions(found.gradient) < 3 * training - 2
  assert "stablehlo.while" in found.gradient
