"""XLA's flags for programs on a CPU, which our own commands set."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys

_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type"
_OPTIONS = "--xla_backend_extra_options"
# XLA ends the process at a flag that it doesn't know, so versions come in when they were looked at.
_KNOWN = ((0, 9), (0, 10))  # of jaxlib


def set_cpu_flags() -> list[str]:
  """Sets XLA's flags for programs on this CPU (docs/performance.md has what each is worth).

  Vectorized loops aren't unrolled again, which takes LLVM time and saves a program none.
  Convolutions are left to Eigen, not to YNNPACK, where that is faster: on x86-64 without AVX-512,
  or with AMD's of before Zen 5, which take its instructions in two halves.

  The flags are in the variable `XLA_FLAGS`, so this counts only before JAX is first used. Nothing
  is changed where JAX has an accelerator's plugin, or where `XLA_FLAGS` names a file of flags; a
  flag that is in `XLA_FLAGS` stays as it is.

  Returns:
    The flags that were set.
  """
  given = os.environ.get("XLA_FLAGS", "")
  names_a_file = given.strip() and not given.lstrip().startswith("-")  # which XLA reads flags from
  if names_a_file or not _is_alone():
    return []
  flags = []
  if _OPTIONS not in given:
    flags.append(f"{_OPTIONS}=xla_cpu_disable_loop_unrolling")
  if _CONVOLUTIONS not in given and _is_known() and _is_faster(_processor()):
    flags.append(f"{_CONVOLUTIONS}=-individual_convolution")
  os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()
  return flags


def _is_known() -> bool:
  version = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("jaxlib"))
  return version is not None and (int(version[1]), int(version[2])) in _KNOWN


def _is_alone() -> bool:
  """Whether JAX will find no device but the CPU."""
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return True
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  packages = ("libtpu", "jax_plugins")
  return not plugins and all(importlib.util.find_spec(name) is None for name in packages)


def _is_faster(processor: dict[str, str]) -> bool:
  """Whether Eigen's convolutions are faster than YNNPACK's."""
  instructions = processor.get("flags", "").split()
  family = processor.get("cpu family", "")
  halves = processor.get("vendor_id") == "AuthenticAMD" and family.isdecimal() and int(family) < 26
  return "avx2" in instructions and ("avx512f" not in instructions or halves)


def _processor() -> dict[str, str]:
  """What Linux tells of this CPU, by its names; nothing on other systems."""
  path = pathlib.Path("/proc/cpuinfo")
  if not sys.platform.startswith("linux") or not path.exists():
    return {}
  first = path.read_text().split("\n\n")[0]
  return dict(re.findall(r"^(.*?)\s*:[ \t]*(.*)$", first, re.MULTILINE))
