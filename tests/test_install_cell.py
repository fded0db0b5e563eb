"""The notebooks' install cell: what a runtime has stays, and what doesn't stay is told."""

import os
import pathlib
import subprocess
import sys

import pytest

CELL = pathlib.Path(__file__).parents[1] / "colab" / "install.py"
RUNTIME = {
  "jax": "0.7.2",
  "jaxlib": "0.7.2",
  "jax-cuda12-plugin": "0.7.2",
  "jax_cuda12_pjrt": "0.7.2",
  "libtpu": "0.0.21",
  "numpy": "2.1.3",
  "nvidia-cublas-cu12": "12.8.4.1",
  "flax": "0.11.2",
  "jaxtyping": "0.3.0",
  "numpyro": "0.19.0",
}
KEPT = [
  "jax==0.7.2",
  "jax-cuda12-plugin==0.7.2",
  "jax_cuda12_pjrt==0.7.2",
  "jaxlib==0.7.2",
  "libtpu==0.0.21",
  "numpy==2.1.3",
  "nvidia-cublas-cu12==12.8.4.1",
]
FAKE_JAX = "__version__ = '{}'\ndevices = lambda: ['Chip(0)']\n"
ADD_JSEG = "add('jaxseg', '0.1.0')\n"
SWAP = "remove('{0}', '{1}')\nadd('{0}', '{2}')\n"
CLASH = """
print('The conflict is caused by:\\n    jaxseg 0.1.0 depends on jax>=0.9')
print('    The user requested (constraint) jax==0.7.2')
sys.exit(1)
"""
FAKE_PIP = """
import pathlib, shutil, sys
place = pathlib.Path(__file__).parents[1]
(place / 'asked').write_text(pathlib.Path(sys.argv[3]).read_text() + '\\n' + sys.argv[4])
def add(name, version):
  folder = place / f'{name}-{version}.dist-info'
  folder.mkdir()
  (folder / 'METADATA').write_text(f'Name: {name}\\nVersion: {version}\\n')
def remove(name, version):
  shutil.rmtree(place / f'{name}-{version}.dist-info')
"""


@pytest.fixture
def run(tmp_path):
  """Runs the cell in a process that sees nothing but a made-up runtime and a made-up pip."""
  for name, version in RUNTIME.items():
    folder = tmp_path / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
  (tmp_path / "jax.py").write_text(FAKE_JAX.format("0.7.2"))
  (tmp_path / "pip").mkdir()
  (tmp_path / "pip" / "__init__.py").touch()  # else the real one is found first

  def run(pip):
    (tmp_path / "pip" / "__main__.py").write_text(FAKE_PIP + pip)
    command = [sys.executable, "-S", str(CELL)]
    settings = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True)

  return run


def test_pip_gets_what_is_installed_as_constraints(run, tmp_path):
  done = run(ADD_JSEG)
  assert done.returncode == 0, done.stderr
  *constraints, source = (tmp_path / "asked").read_text().splitlines()
  assert constraints == KEPT
  assert source.startswith("jaxseg @ git+https://")
  assert "JAX 0.7.2 on ['Chip(0)']" in done.stdout
  assert f"jseg 0.1.0 is ready; kept: {', '.join(KEPT)}" in done.stdout


def test_other_packages_that_pip_replaced_are_told(run):
  done = run(ADD_JSEG + SWAP.format("flax", "0.11.2", "0.12.0"))
  assert done.returncode == 0
  assert "replaced: flax 0.11.2 -> 0.12.0" in done.stdout


def test_a_package_that_should_have_stayed_stops_the_cell(run):
  done = run(ADD_JSEG + SWAP.format("jax_cuda12_pjrt", "0.7.2", "0.10.2"))
  assert done.returncode == 1
  assert "this runtime had jax_cuda12_pjrt==0.7.2, and no longer has" in done.stderr
  assert "Disconnect and delete runtime" in done.stderr


def test_devices_that_are_gone_stop_the_cell(run):
  lose = f"(place / 'jax.py').write_text({FAKE_JAX.format('0.7.2').replace('Chip(0)', 'Cpu')!r})"
  done = run(ADD_JSEG + lose)
  assert done.returncode == 1
  assert "had JAX 0.7.2 on ['Chip(0)'], and no longer has: JAX 0.7.2 on ['Cpu']" in done.stderr


def test_constraints_that_cannot_be_met_are_named(run):
  done = run(CLASH)
  assert done.returncode == 1
  assert "can't be installed beside this runtime's jax==0.7.2" in done.stderr
  assert "jaxseg 0.1.0 depends on jax>=0.9" in done.stdout


def test_what_is_installed_is_not_installed_again(run, tmp_path):
  (tmp_path / "jseg.py").touch()
  done = run(ADD_JSEG)
  assert done.returncode == 0
  assert not (tmp_path / "asked").exists()
  assert "SOURCE wasn't used" in done.stdout
