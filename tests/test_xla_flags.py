"""XLA's flags for CPUs: when which is set, and that XLA follows."""

import os
import subprocess
import sys

import pytest

from jseg import xla_flags

EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
NO_UNROLLING = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"


@pytest.fixture
def machine(monkeypatch):
  """A machine whose parts the tests change; here both flags are set."""

  def change(*, cpu=("GenuineIntel", 6, "avx2 fma"), jaxlib="0.10.2", platforms="cpu", flags=""):
    processor = dict(zip(("vendor_id", "cpu family", "flags"), map(str, cpu), strict=True))
    monkeypatch.setattr(xla_flags, "_processor", lambda: processor)
    monkeypatch.setattr(xla_flags.importlib.metadata, "version", {"jaxlib": jaxlib}.get)
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
  assert xla_flags.set_cpu_flags() == [NO_UNROLLING, EIGEN]
  assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/tmp/x {NO_UNROLLING} {EIGEN}"
  assert not xla_flags.set_cpu_flags()  # once
  assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/tmp/x {NO_UNROLLING} {EIGEN}"


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
def test_convolutions_are_left_alone(machine, part):
  machine(**part)
  assert xla_flags.set_cpu_flags() == [NO_UNROLLING]
  assert os.environ["XLA_FLAGS"].split() == [*part.get("flags", "").split(), NO_UNROLLING]


def test_the_backends_own_options_are_left_alone(machine):
  machine(flags="--xla_backend_extra_options=xla_cpu_optimize_for_size")
  assert xla_flags.set_cpu_flags() == [EIGEN]


def test_what_the_user_gave_stays_as_it_is(machine):
  machine(flags='--xla_dump_to="a  b"')
  xla_flags.set_cpu_flags()
  assert os.environ["XLA_FLAGS"] == f'--xla_dump_to="a  b" {NO_UNROLLING} {EIGEN}'
  machine(flags="flags.txt")  # a file, in which XLA looks for flags
  assert not xla_flags.set_cpu_flags()
  assert os.environ["XLA_FLAGS"] == "flags.txt"


def test_no_plugin_is_given_a_flag_that_it_may_not_know(machine, monkeypatch):
  machine(platforms="")
  monkeypatch.setattr(xla_flags.importlib.metadata, "entry_points", lambda group: ())
  monkeypatch.setattr(xla_flags.importlib.util, "find_spec", lambda name: None)
  assert xla_flags._is_alone()
  monkeypatch.setattr(xla_flags.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
  assert not xla_flags.set_cpu_flags()
  assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.skipif(not xla_flags._is_known(), reason="this jaxlib wasn't tried")
def test_xla_leaves_convolutions_to_eigen():
  text = """
x = jax.ShapeDtypeStruct((2, 32, 32, 64), "float32")
kernel = jax.ShapeDtypeStruct((3, 3, 64, 64), "float32")
conv = lambda x, k: jax.lax.conv_general_dilated(
  x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
print("ynn_fusion" in jax.jit(conv).lower(x, kernel).compile().as_text())
"""
  assert run(text, "") == "True"
  assert run(text, "", "xla_flags._is_faster = lambda processor: True") == "False"


def test_xla_unrolls_no_loops():
  """XLA doesn't tell how it compiled, so by the size of the machine code, which has flags in it."""
  text = """
x = jax.ShapeDtypeStruct((1000, 77), "float32")
double = jax.jit(lambda x: jax.numpy.pad(x[:, 1:] * 2 + x[:, :-1], ((1, 1), (2, 3))).cumsum(1))
program = double.lower(x).compile().runtime_executable()
older = not hasattr(program, "serialize")  # JAX 0.7
print(len(program.client.serialize_executable(program) if older else program.serialize()))
"""
  assert run(text, f"{NO_UNROLLING[:-1]}X") != run(text, "")


def run(text, flags, before=""):
  """What a program prints that sets the flags of a CPU which wants YNNPACK, and `before`."""
  script = f"""
import jax
from jseg import xla_flags
xla_flags._is_faster = lambda processor: False
{before}
xla_flags.set_cpu_flags()
{text}
"""
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", script]
  done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
  return done.stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_the_processor_is_read_from_proc(monkeypatch):
  text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2\nbugs:\n"
  monkeypatch.setattr(xla_flags.pathlib.Path, "read_text", lambda self: f"{text}\n{text}")
  found = xla_flags._processor()
  assert (found["vendor_id"], found["cpu family"]) == ("AuthenticAMD", "25")
  assert found["flags"] == "fpu avx2"
