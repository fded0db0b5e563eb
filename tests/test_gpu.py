"""Every network compiles for a GPU, which need not be there."""

import importlib.util

import pytest
from helpers.ahead import ahead, tiny_programs

from jseg import models


@pytest.fixture(scope="module")
def gpu():
  # Without any plugin the package that holds them isn't there either.
  plugins = importlib.util.find_spec("jax_plugins")
  if not plugins or importlib.util.find_spec("jax_plugins.xla_cuda12") is None:
    pytest.skip("JAX's plugin isn't installed: pip install -e '.[cuda-compile]', on x86-64 Linux")
  return ahead.t4()


@pytest.mark.parametrize("name", models.names())
def test_training_compiles(gpu, name):
  fits(tiny_programs(name, gpu, dtype="float16"))


# What is more in it than in training is the task's.
@pytest.mark.parametrize("name", ["unet", "unet3d", "mask_rcnn"])
def test_evaluation_compiles(gpu, name):
  fits(tiny_programs(name, gpu, dtype="float16"), "evaluation")


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_the_crf_layer_compiles(gpu, method):
  fits(tiny_programs("unet", gpu, size=16, crf=method, dtype="float16"))


def fits(programs, name="training"):
  lowered = getattr(programs, name)()
  assert "xf16>" in lowered.as_text()
  assert 0 < ahead.compiled(lowered).memory < 2**30
