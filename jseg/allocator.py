"""Memory that glibc keeps between calls, for our own commands."""

import ctypes
import os
import sys

# From malloc.h; the values are mallopt's.
_SETTINGS = {
  -8: 1,  # M_ARENA_MAX: large blocks can't be kept in any arena but the main one
  -4: 0,  # M_MMAP_MAX: no mapping of its own for each large block
  -1: -1,  # M_TRIM_THRESHOLD: never give the top back
}
_VARIABLES = (
  "MALLOC_ARENA_MAX",
  "MALLOC_MMAP_MAX_",
  "MALLOC_MMAP_THRESHOLD_",
  "MALLOC_TRIM_THRESHOLD_",
  "GLIBC_TUNABLES",
)


def keep_freed_memory() -> bool:
  """Makes glibc keep the memory of large temporaries for the next call, in this process.

  By default glibc maps each large block anew and gives it back when it is freed, so that a program
  of large arrays has the kernel clear and map every page of its temporaries at every call: about a
  tenth of the time of some networks on a CPU. What was once needed isn't given back before the
  process ends, and the peak can be higher by what lies free between blocks in use.

  Whoever has set one of glibc's own variables (`MALLOC_ARENA_MAX`, ...) keeps their settings, and
  other C libraries are left alone.

  Returns:
    Whether glibc took the settings.
  """
  if any(name in os.environ for name in _VARIABLES):
    return False
  if not sys.platform.startswith("linux"):
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "gnu_get_libc_version"):  # others have a mallopt that does nothing
    return False
  taken = [libc.mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items()]
  return all(taken)
