"""What to install is said in a line that works where it is read."""

import sys
import types

import pytest

from jseg import cli, install

REQUIRED = [
  "jax>=0.8",
  "nibabel>=5.2; extra == 'volumes'",
  'torch>=2.9; extra == "bench"',
  "torchvision>=0.24; extra == 'bench'",
]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
  """The library as if it came from a wheel: without pyproject.toml."""
  monkeypatch.setattr(install, "__file__", str(tmp_path / "jseg" / "install.py"))
  monkeypatch.setattr(install.importlib.metadata, "requires", lambda name: REQUIRED)
  return tmp_path


def test_the_packages_of_an_extra_are_named(wheel, monkeypatch):
  monkeypatch.setattr(install, "_in_notebook", lambda: False)
  assert install.install_line("volumes") == 'pip install "nibabel>=5.2"'
  assert install.install_line("bench") == 'pip install "torch>=2.9" "torchvision>=0.24"'
  with pytest.raises(KeyError):
    install.install_line("volume")


def test_a_clone_says_what_its_own_file_says(wheel):
  (wheel / "pyproject.toml").write_text(
    '[project]\nname = "jaxseg"\n[project.optional-dependencies]\nvolumes = ["nibabel>=9"]\n'
  )
  assert install.requirements("volumes") == ["nibabel>=9"]
  # Of another project, in which the library happens to lie.
  (wheel / "pyproject.toml").write_text('[project]\nname = "other"\n')
  assert install.requirements("volumes") == ["nibabel>=5.2"]


def test_a_copy_without_metadata_still_says_what_is_missing(wheel, monkeypatch):
  def requires(name):
    raise install.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(install.importlib.metadata, "requires", requires)
  assert install.install_line("volumes") == "install what pyproject.toml lists under volumes"


@pytest.mark.parametrize("where", ["kernel", "shell"])
def test_a_notebook_has_its_own_command(wheel, monkeypatch, where):
  if where == "kernel":
    shell = types.SimpleNamespace(get_ipython=lambda: "a shell")
    monkeypatch.setitem(sys.modules, "IPython", shell)
  else:
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
  assert install.install_line("volumes") == '%pip install "nibabel>=5.2"'


def test_versions_and_devices(capsys):
  with pytest.raises(SystemExit, match="0"):
    cli.main(["--version"])
  lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
  names = ["jseg", "python", "jax", "jaxlib", "flax", "optax", "orbax", "numpy"]
  assert list(lines) == [*names, "devices", "platform"]
  assert lines["devices"] == "4 x cpu"
  assert lines["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_broken_accelerator_is_reported(monkeypatch):
  def devices():
    raise RuntimeError("the TPU is in use")

  monkeypatch.setattr(install.jax, "devices", devices)
  assert install.versions()["devices"] == "none: the TPU is in use"
