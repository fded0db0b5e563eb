"""float64, which JAX 0.8 named anew."""

import jax
from jax import experimental


def doubles(wanted=True):
  """Context in which arrays may be float64."""
  enable = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64
  return enable(wanted)
