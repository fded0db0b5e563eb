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

  def change(*, cpu=("GenuineIntel", 6, "avx2 fma"), jaxlib="0.10.2", platforms="cpu", flags=""):
    processor = dict(zip(("vendor_id", "cpu family", "flags"), map(str, cpu), strict=True))
    monkeypatch.setattr(convolutions, "_processor", lambda: processor)
    monkeypatch.setattr(convolutions.importlib.metadata, "version", {"jaxlib": jaxlib}.get)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("XLA_FLAGS", flags)

  return change


@pytest.mark.parametrize(
  "cpu",
  [
    ("GenuineIntel", 6, "avx2 fma"),
    ("AuthenticAMD", 25, "avx2 fma"),  # Zen 3
    ("AuthenticAMD", 25, "avx2 avx512f"),  # Zen 4
  ],
)
def test_eigen_is_chosen_by_processor_and_other_flags_stay(machine, cpu):
  machine(cpu=cpu, flags="--xla_dump_to=/tmp/x")
  assert convolutions.prefer_eigen()
  assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/tmp/x {FLAG}"
  assert not convolutions.prefer_eigen()  # once


@pytest.mark.parametrize(
  "part",
  [
    {"cpu": ("GenuineIntel", 6, "avx2 avx512f")},
    {"cpu": ("AuthenticAMD", 26, "avx2 avx512f")},  # Zen 5
    {"cpu": ("", "", "asimd")},
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
convolutions._is_faster = lambda processor: sys.argv[1] == "eigen"
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_the_processor_is_read_from_proc(monkeypatch):
  text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2\nbugs:\n"
  monkeypatch.setattr(convolutions.pathlib.Path, "read_text", lambda self: f"{text}\n{text}")
  found = convolutions._processor()
  assert (found["vendor_id"], found["cpu family"]) == ("AuthenticAMD", "25")
  assert found["flags"] == "fpu avx2"
