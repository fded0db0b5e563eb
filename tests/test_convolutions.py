"""Which library computes convolutions on a CPU: when it is chosen, and that XLA follows."""

import os
import subprocess
import sys

import pytest

from jseg import convolutions

FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


@pytest.fixture
def machine(monkeypatch):
  """A machine whose parts the tests change; here Eigen is chosen."""

  def change(*, instructions=("avx2", "fma"), jaxlib="0.10.2", platforms="cpu", flags=""):
    monkeypatch.setattr(convolutions, "_instructions", lambda: set(instructions))
    monkeypatch.setattr(convolutions.importlib.metadata, "version", {"jaxlib": jaxlib}.get)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("XLA_FLAGS", flags)

  return change


def test_eigen_is_chosen_without_avx512_and_other_flags_stay(machine):
  machine(flags="--xla_dump_to=/tmp/x")
  assert convolutions.prefer_eigen()
  assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/tmp/x {FLAG}"
  assert not convolutions.prefer_eigen()  # once


@pytest.mark.parametrize(
  "part",
  [
    {"instructions": ("avx2", "avx512f")},
    {"instructions": ("asimd",)},
    {"jaxlib": "0.8.3"},
    {"jaxlib": "0.11.0"},
    {"flags": "--xla_cpu_experimental_ynn_fusion_type="},
  ],
)
def test_it_is_left_alone(machine, part):
  machine(**part)
  assert not convolutions.prefer_eigen()
  assert os.environ["XLA_FLAGS"] == part.get("flags", "")


def test_no_plugin_is_given_a_flag_that_it_may_not_know(machine, monkeypatch):
  machine(platforms="")
  monkeypatch.setattr(convolutions.importlib.metadata, "entry_points", lambda group: ())
  monkeypatch.setattr(convolutions.importlib.util, "find_spec", lambda name: None)
  assert convolutions._is_alone()
  monkeypatch.setattr(
    convolutions.importlib.util, "find_spec", lambda name: name == "libtpu" or None
  )
  assert not convolutions.prefer_eigen()


@pytest.mark.skipif(not convolutions._is_known(), reason="this jaxlib wasn't tried")
def test_xla_follows():
  script = """
import jax, sys
from jseg import convolutions
convolutions._is_faster = lambda instructions: sys.argv[1] == "eigen"
chosen = convolutions.prefer_eigen()
x = jax.ShapeDtypeStruct((2, 32, 32, 64), "float32")
kernel = jax.ShapeDtypeStruct((3, 3, 64, 64), "float32")
conv = lambda x, k: jax.lax.conv_general_dilated(
  x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
text = jax.jit(conv).lower(x, kernel).compile().as_text()
print(chosen, "ynn_fusion" in text)
"""
  environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  for word, expected in (("eigen", "True False"), ("ynn", "False True")):
    command = [sys.executable, "-c", script, word]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == expected
