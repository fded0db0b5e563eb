"""Memory: what there is, and when it is given back."""

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

import jax

# From malloc.h; the values are mallopt's.
_SETTINGS = {
  # M_ARENA_MAX: with a single arena the threads of XLA's compiler wait for one another; with eight
  # for each core, which is usual, what they have used lies about.
  -8: 1 + (os.cpu_count() or 1),
  -4: 0,  # M_MMAP_MAX: no mapping of its own for each large block
  -1: -1,  # M_TRIM_THRESHOLD: never give the top back
}
# What glibc comes to by itself in a program of large blocks (mallopt(3), M_MMAP_THRESHOLD).
_USUAL = {-4: 1 << 16, -3: 1 << 25, -1: 1 << 26}  # M_MMAP_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
_kept: set[int] = set()  # settings of this process that `give_back_memory` is to undo
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

  Only the first thread's arena keeps blocks of more than 64 MiB. So JAX computes on a CPU in the
  thread that calls, no longer in one of its own; this counts only before JAX is first used, and
  whoever has set `JAX_CPU_ENABLE_ASYNC_DISPATCH` keeps their setting.

  Whoever has set one of glibc's own variables (`MALLOC_ARENA_MAX`, ...) keeps their settings, and
  other C libraries are left alone.

  Returns:
    Whether glibc took the settings.
  """
  if any(name in os.environ for name in _VARIABLES):
    return False
  libc = _glibc()
  if libc is None:
    return False
  if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
    jax.config.update("jax_cpu_enable_async_dispatch", False)
  _kept.update(p for p, value in _SETTINGS.items() if libc.mallopt(p, value) == 1)
  return len(_kept) == len(_SETTINGS)


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
  """Has Python not look for garbage inside, such as while JAX traces a network.

  That makes a million objects that stay, and to look through them again and again takes a quarter
  of the time.
  """
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()


def give_back_memory() -> bool:
  """Undoes `keep_freed_memory`, and gives what is free back; for what needs much memory as it is.

  Blocks that are kept lie about in pieces too small for the next large one: of an image of 12,000 x
  9,000 in windows, with what its decoder left, they were an eighth of the peak.

  Returns:
    Whether any was given back.
  """
  libc = _glibc()
  if libc is None:
    return False
  if _kept:
    for parameter, value in _USUAL.items():
      libc.mallopt(parameter, value)
    _kept.clear()
  return libc.malloc_trim(0) == 1


def total_memory() -> int | None:
  """Returns the bytes of memory that this machine has; None where its system doesn't tell."""
  try:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (AttributeError, OSError, ValueError):  # Windows has no sysconf, others not these names
    return None


def _glibc() -> ctypes.CDLL | None:
  """The C library if it is glibc; others have a mallopt that does nothing."""
  if not sys.platform.startswith("linux"):
    return None
  libc = ctypes.CDLL(None)
  return libc if hasattr(libc, "gnu_get_libc_version") else None
