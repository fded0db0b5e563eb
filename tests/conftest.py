"""Settings that every test runs under."""

import os

# Tests compile much and run little: what LLVM optimises would take most of their time.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
  " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax

# Tests of data parallelism need several devices; four simulated ones cost the others nothing.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
