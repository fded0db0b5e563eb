"""Memory that glibc keeps, in processes of their own."""

import subprocess
import sys

import pytest

from jseg import allocator

# Page faults of writing 64 MiB into a block that was just freed.
SCRIPT = """
import resource, sys
import numpy as np
from jseg.allocator import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "keep" else False
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(2**23)
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(taken, faults())
"""


# Pages of 4 KiB, so that there are 16,384 of them.
ENVIRONMENT = {"NUMPY_MADVISE_HUGEPAGE": "0"}


def run(word):
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT, word],
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


def test_own_settings_win(monkeypatch):
  monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
  assert not allocator.keep_freed_memory()
