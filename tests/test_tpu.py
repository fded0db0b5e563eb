"""Every network and the dense CRF compile for a TPU, which need not be there."""

import importlib.util
import os
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from helpers.ahead import ahead, tiny_programs

from jseg import models
from jseg.crf import CrfParams, dense_crf


@pytest.fixture(scope="module")
def chips():
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu isn't installed: pip install -e '.[tpu-compile]', on x86-64 Linux")
  # Otherwise the first process keeps all others out until it ends, as if chips were shared.
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  jax.devices()  # The CPU has read its flags; a libtpu that doesn't know one of them would abort.
  with mock.patch.dict(os.environ, {"XLA_FLAGS": ""}):
    yield ahead.tpu("v5e:2x2")


@pytest.mark.parametrize("name", models.names())
def test_training_compiles(chips, name):
  fits(ahead.compiled(tiny_programs(name, chips).training()))


# What is more in it than in training is the task's.
@pytest.mark.parametrize("name", ["unet", "unet3d", "mask_rcnn"])
def test_evaluation_compiles(chips, name):
  fits(ahead.compiled(tiny_programs(name, chips).evaluation()))


@pytest.mark.usefixtures("chips")
@pytest.mark.parametrize(
  ("kind", "method"), [("v5e", "exact"), ("v5e", "lattice"), ("v6e", "exact")]
)
def test_the_crf_and_its_gradient_compile(kind, method):
  devices = ahead.tpu(f"{kind}:2x2")
  params = CrfParams(iterations=2, method=method)

  @jax.value_and_grad
  def loss(logits, image):
    return dense_crf(logits, image, params)[..., 0].sum()

  shapes = [jax.ShapeDtypeStruct((6, 7, channels), jnp.float32) for channels in (2, 3)]
  with ahead.as_if_on(devices):
    lowered = jax.jit(loss).lower(*ahead.on(devices[0], shapes))
  assert ("tpu_custom_call" in lowered.as_text()) == (method == "exact")
  fits(ahead.compiled(lowered))


# Behind a network in bfloat16, on all chips.
@pytest.mark.parametrize("method", ["exact", "lattice"])
@pytest.mark.parametrize("program", ["training", "evaluation"])
def test_the_crf_layer_compiles(chips, program, method):
  programs = tiny_programs("unet", chips, size=16, crf=method)
  fits(ahead.compiled(getattr(programs, program)()))


def fits(cost):
  assert cost.flops > 0
  assert 0 < cost.memory < 2**30
