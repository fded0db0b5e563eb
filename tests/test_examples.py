"""Every example runs from the command line, in a small setting."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
  "own_dataset": "validation mIoU",
  "own_loop": "from the restored checkpoint",
  "own_loss": "validation mIoU",
  "own_network": "'disc'",
}


def test_every_example_is_run():
  assert {path.stem for path in EXAMPLES} == set(SAYS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, tmp_path):
  # From another folder, as a user of an installed library would.
  command = [sys.executable, str(path), "--steps=2", f"--workdir={tmp_path / 'run'}"]
  environment = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "TFDS_DATA_DIR": str(tmp_path / "data"),
    "JAX_NUM_CPU_DEVICES": "2",
  }
  result = subprocess.run(
    command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
  )
  assert result.returncode == 0, result.stderr
  assert SAYS[path.stem] in result.stdout
