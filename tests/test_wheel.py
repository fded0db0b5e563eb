"""What is built is whole: it works where there is nothing else of the repository."""

import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[1]
# The quickstart from top to bottom, as small as it goes.
SMALL = """\
--config.steps=2 --config.model.widths=(4,8) --config.samples=1 --config.data.size=(32,32)
--config.data.options.size=32 --config.data.options.train=8 --config.data.options.val=3
--config.data.options.test=3 --config.optim.warmup_steps=0
"""
TOUR = """\
import sys
import jseg
from jseg import cli

print(jseg.__file__)
cli.main(["train", *sys.argv[1:]])
cli.main(["evaluate", "runs/quickstart", "--split", "test"])
cli.main(["predict", "runs/quickstart", "photo.png", "--out", "out"])
cli.main(["export", "runs/quickstart", "--platforms", "cpu"])
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
  """Folder with the wheel and the source distribution."""
  folder = tmp_path_factory.mktemp("dist")
  call([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT)
  return folder


def call(command, **options):
  result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
  assert result.returncode == 0, result.stdout + result.stderr
  return result.stdout


def sources(folder, *suffixes):
  """Files below a folder of the repository, by their path in it."""
  found = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
  return {path.relative_to(ROOT).as_posix() for path in found}


def test_the_wheel_holds_the_library_and_its_recipes(dist):
  (wheel,) = dist.glob("*.whl")
  names = set(zipfile.ZipFile(wheel).namelist())
  library = {name for name in names if ".dist-info/" not in name}
  recipes = {f"jseg/{name}" for name in sources("configs", ".py")}
  assert recipes
  assert library == sources("jseg", ".py", ".typed") | recipes


def test_the_source_distribution_holds_what_a_wheel_is_built_of(dist):
  (archive,) = dist.glob("*.tar.gz")
  with tarfile.open(archive) as tar:
    names = {name.partition("/")[2] for name in tar.getnames()}
  wanted = sources("jseg", ".py") | sources("configs", ".py") | sources("tests", ".py")
  assert wanted | {"README.md", "LICENSE", "CITATION.cff", "pyproject.toml"} <= names
  assert not {name.partition("/")[0] for name in names} & {".git", ".github", ".ci", "runs", "dist"}


def test_the_wheel_trains_evaluates_predicts_and_exports_in_an_empty_folder(dist, tmp_path):
  (wheel,) = dist.glob("*.whl")
  library, folder = tmp_path / "library", tmp_path / "empty"
  folder.mkdir()
  pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile"]
  call([*pip, "--target", str(library), str(wheel)])
  noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
  Image.fromarray(noise).save(folder / "photo.png")
  environment = {
    **os.environ,
    "PYTHONPATH": str(library),
    "TFDS_DATA_DIR": str(tmp_path / "data"),
    "JAX_NUM_CPU_DEVICES": "1",
  }
  output = call([sys.executable, "-c", TOUR, *SMALL.split()], cwd=folder, env=environment)
  assert output.splitlines()[0] == str(library / "jseg" / "__init__.py")
  run = folder / "runs" / "quickstart"
  written = ("samples/0000002.png", "curves.png", "evaluation/test.json", "export/unet.stablehlo")
  assert all((run / name).stat().st_size for name in written)
  mask = np.asarray(Image.open(folder / "out" / "photo.png"))
  assert mask.shape == (40, 50)
  assert mask.max() < 5
  # Nothing but what it was asked for.
  assert {path.name for path in folder.iterdir()} == {"photo.png", "runs", "out"}
