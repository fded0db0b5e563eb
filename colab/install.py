# @title Install: the JAX that this runtime has, and what belongs to it, stays as it is
SOURCE = "jaxseg @ git+https://github.com/THE_OWNER/jseg"  # @param {type:"string"}

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tempfile

KEPT = re.compile(r"jax|jaxlib|jax[_-].+|libtpu.*|numpy|nvidia-.+", re.IGNORECASE)


def installed():
  """Versions of all packages by name."""
  importlib.invalidate_caches()
  found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
  return {name: found[name] for name in sorted(filter(None, found), key=str.lower)}


def kept(packages):
  """Those that must not change, as pip writes them."""
  return [f"{name}=={version}" for name, version in packages.items() if KEPT.fullmatch(name)]


def jax_and_devices():
  """What JAX says in a process of its own: this one must not take the devices yet."""
  code = "import jax; print('JAX', jax.__version__, 'on', jax.devices())"
  quiet = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  asked = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True)
  return asked.stdout.strip() or "JAX doesn't start: " + asked.stderr.strip().splitlines()[-1]


def install(source, constraints):
  """Installs with pip; where the constraints don't allow it, says which of them."""
  file = pathlib.Path(tempfile.mkdtemp(), "constraints.txt")
  file.write_text("\n".join(constraints))
  command = [sys.executable, "-m", "pip", "install", "--constraint", str(file), source]
  pip = subprocess.run(command, capture_output=True, text=True)
  if pip.returncode:
    said = pip.stdout + pip.stderr
    clash = re.findall(r"\(constraint\) (\S+)", said)
    print(said[-2000:])
    raise SystemExit(
      f"{source} can't be installed beside this runtime's {', '.join(clash) or 'packages'}; what "
      "pip says stands above. Nothing was changed. Choose another runtime version (Runtime > "
      "Change runtime type), or give an older jseg as SOURCE"
    )


before, found = installed(), jax_and_devices()
print(found if "jax" in before else "no JAX is here yet: pip chooses one")
if importlib.util.find_spec("jseg"):
  print("jseg is installed already; SOURCE wasn't used")
else:
  install(SOURCE, kept(before))
after = installed()
replaced = [f"{n} {before[n]} -> {after.get(n)}" for n in before if after.get(n) != before[n]]
if replaced:
  print("replaced:", ", ".join(replaced))
lost = sorted(set(kept(before)) - set(kept(after)))
if "jax" in before and (lost or jax_and_devices() != found):
  raise SystemExit(
    f"this runtime had {', '.join(lost) or found}, and no longer has: {jax_and_devices()}. "
    "Choose Runtime > Disconnect and delete runtime, then run this cell before all others"
  )
print("jseg", after.get("jaxseg", "of this folder"), "is ready; kept:", ", ".join(kept(after)))
