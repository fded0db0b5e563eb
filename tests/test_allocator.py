"""Memory that glibc keeps, in processes of their own."""

import contextlib
import gc
import subprocess
import sys

import pytest

from jseg import allocator

# Page faults of writing 64 MiB into a block that was just freed.
SCRIPT = """
import resource, sys
import numpy as np
from jseg.allocator import give_back_memory, keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] != "leave" else False
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(2**23)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
if sys.argv[1] == "give back":
  resident = lambda: int(open("/proc/self/statm").read().split()[1])
  before = resident()
  taken = give_back_memory() and before - resident() > 15_000
print(taken, faults())
"""


# The fewest page faults of calls that make 256 MiB: a former result may be freed too late for one.
PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from jseg.allocator import keep_freed_memory
if sys.argv[1] == "keep":
  keep_freed_memory()
program = jax.jit(lambda x: jnp.outer(x, x))
x = jnp.ones(2**13)
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  program(x).block_until_ready()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(True, min(faults() for _ in range(8)))
"""


# Pages of 4 KiB, so that there are 16,384 of them.
ENVIRONMENT = {"NUMPY_MADVISE_HUGEPAGE": "0"}


def run(word, script=SCRIPT):
  done = subprocess.run(
    [sys.executable, "-c", script, word],
    capture_output=True,
    text=True,
    env=ENVIRONMENT,
    check=True,
  )
  taken, faults = done.stdout.split()
  return taken == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_a_freed_block_is_not_faulted_in_again():
  taken, faults = run("keep")
  assert faults < 1000 or not taken
  assert run("leave")[1] > 10_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_jax_keeps_memory_between_calls():
  kept, _ = run("keep")
  assert run("keep", PROGRAM)[1] < 10_000 or not kept
  assert run("leave", PROGRAM)[1] > 60_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_what_was_kept_is_given_back():
  kept, _ = run("keep")
  given, faults = run("give back")
  assert given or not kept
  assert faults > 10_000  # and no longer kept


def test_own_settings_win(monkeypatch):
  monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
  assert not allocator.keep_freed_memory()


def test_garbage_is_left_alone_while_a_network_is_traced():
  assert gc.isenabled()
  with allocator.without_collection():
    assert not gc.isenabled()
  assert gc.isenabled()
  with contextlib.suppress(ValueError), allocator.without_collection():
    raise ValueError
  assert gc.isenabled()
  gc.disable()
  try:
    with allocator.without_collection():
      pass
    assert not gc.isenabled()
  finally:
    gc.enable()
