"""How much memory a process has needed at most, on the host and on its devices."""

import sys

try:
  import resource
except ImportError:  # Windows
  resource = None  # type: ignore[assignment]

import jax

_GIB = 2.0**30


def peaks() -> dict[str, float]:
  """Returns the most memory so far in GiB: `host_peak_gib`, and `device_peak_gib` of one device.

  What the platform doesn't tell is left out: a CPU's devices have no memory of their own.
  """
  found = {}
  if resource is not None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found["host_peak_gib"] = most * (1 if sys.platform == "darwin" else 1024) / _GIB
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if devices := [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]:
    found["device_peak_gib"] = max(devices) / _GIB
  return found
