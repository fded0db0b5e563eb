"""Every network compiles for a TPU, which need not be there."""

import importlib.util
import os

import pytest
from helpers.ahead import ahead, tiny_programs

from jseg import models


@pytest.fixture(scope="module")
def chips():
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu isn't installed; it is for x86-64 Linux alone")
  # Otherwise the first process keeps all others out until it ends, as if chips were shared.
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  return ahead.tpu("v5e:2x2")


@pytest.mark.parametrize("name", models.names())
def test_training_compiles(chips, name):
  fits(ahead.compiled(tiny_programs(name, chips).training()))


# What is more in it than in training is the task's.
@pytest.mark.parametrize("name", ["unet", "unet3d", "mask_rcnn"])
def test_evaluation_compiles(chips, name):
  fits(ahead.compiled(tiny_programs(name, chips).evaluation()))


def fits(cost):
  assert cost.flops > 0
  assert 0 < cost.memory < 2**30
