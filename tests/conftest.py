"""Settings that every test runs under."""

import os

# Tests compile much and run little: LLVM's full optimisation would take most of their time.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1"

import jax

# Tests of data parallelism need several devices; four simulated ones cost the others nothing.
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
