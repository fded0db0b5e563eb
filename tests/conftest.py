"""Settings that every test runs under."""

import atexit
import gc
import os
import shutil
import tempfile

# Tests compile much and run little: what LLVM optimises would take most of their time.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
  " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# Many compile the same programs, also in processes of their own. Each worker has its own store: one
# isn't to read what another is writing.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jseg-programs-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import pytest

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Tests of data parallelism need several devices; four simulated ones cost the others nothing.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget():
  """Drops what a module traced and compiled, gigabytes in all that only slow the rest down."""
  yield
  jax.clear_caches()
  gc.collect()
