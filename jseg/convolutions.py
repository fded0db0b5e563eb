"""Which of XLA's two libraries computes convolutions on a CPU, for our own commands."""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys

_FLAG = "xla_cpu_experimental_ynn_fusion_type"
# XLA ends the process at a flag that it doesn't know, so versions come in when they were looked at.
_KNOWN = ((0, 9), (0, 10))  # of jaxlib


def prefer_eigen() -> bool:
  """Has XLA leave convolutions on this CPU to Eigen, not to YNNPACK, where that is faster.

  That is on x86-64 without AVX-512, or with AMD's of before Zen 5, which take its instructions in
  two halves (docs/performance.md). It is a flag of XLA's in the variable
  `XLA_FLAGS`, so this counts only before JAX is first used. Nothing is changed where JAX has an
  accelerator's plugin, which needn't know the flag, nor for a jaxlib in which it wasn't tried, and
  whoever has the flag in `XLA_FLAGS` keeps their setting.

  Returns:
    Whether the flag was set.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if _FLAG in given or not (_is_known() and _is_alone() and _is_faster(_processor())):
    return False
  os.environ["XLA_FLAGS"] = f"{given} --{_FLAG}=-individual_convolution".strip()
  return True


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
