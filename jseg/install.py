"""How the library was installed, and what installs the packages that it does without."""

import collections
import importlib
import importlib.metadata
import os
import pathlib
import platform
import re
import sys
import tomllib
from collections.abc import Iterable

import jax

DISTRIBUTION = "jaxseg"
"""Name under which packaging tools know the library."""


def install_line(extra: str) -> str:
  """Returns the command that installs what an extra of the library brings.

  It names the packages themselves, so that it works wherever the library came from: a clone, a
  wheel or a repository. In a notebook it is the notebook's own command.

  Args:
    extra: name of the extra in pyproject.toml.
  """
  try:
    packages = " ".join(f'"{each}"' for each in requirements(extra))
  except importlib.metadata.PackageNotFoundError:  # copied, and never installed
    return f"install what pyproject.toml lists under {extra}"
  return f"{'%pip' if _in_notebook() else 'pip'} install {packages}"


def requirements(extra: str) -> list[str]:
  """Returns the packages that an extra brings, each with its least version.

  Raises:
    KeyError: there is no such extra.
  """
  extras = _extras_of_clone() or _extras_of_wheel(importlib.metadata.requires(DISTRIBUTION) or ())
  return extras[extra]


def _extras_of_clone() -> dict[str, list[str]]:
  """The extras that a clone's pyproject.toml lists; what was installed may be older than it."""
  path = pathlib.Path(__file__).parents[1] / "pyproject.toml"
  if not path.is_file():
    return {}
  project = tomllib.loads(path.read_text()).get("project", {})
  return project.get("optional-dependencies", {}) if project.get("name") == DISTRIBUTION else {}


def _extras_of_wheel(required: Iterable[str]) -> dict[str, list[str]]:
  """The extras in the requirements of installed metadata: `nibabel>=5.2; extra == 'volumes'`."""
  extras: dict[str, list[str]] = {}
  for each in required:
    package, _, marker = each.partition(";")
    if named := re.search(r"extra == ['\"]([\w-]+)['\"]", marker):
      extras.setdefault(named[1], []).append(package.strip())
  return extras


def versions() -> dict[str, str]:
  """Returns what a bug report needs: versions by name, the platform and JAX's devices."""
  names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  package = pathlib.Path(__file__).parent
  own = importlib.import_module(package.name).__version__
  found = {"jseg": f"{own}, in {package}", "python": platform.python_version()}
  found |= {name.partition("-")[0]: _version(name) for name in names}
  try:
    devices = collections.Counter(_device(device) for device in jax.devices())
    found["devices"] = ", ".join(f"{n} x {device}" for device, n in devices.items())
  except RuntimeError as error:  # an accelerator that is taken or broken, which is worth reporting
    found["devices"] = f"none: {error}"
  return {**found, "platform": platform.platform()}


def _device(device: jax.Device) -> str:
  kinds = dict.fromkeys((device.platform, device.device_kind))
  return " ".join(kinds)


def _version(distribution: str) -> str:
  try:
    return importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"


def _in_notebook() -> bool:
  ipython = sys.modules.get("IPython")
  # Colab's shell commands ("!jseg ...") are processes of their own, with this variable.
  return "COLAB_RELEASE_TAG" in os.environ or bool(ipython and ipython.get_ipython())
