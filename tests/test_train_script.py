"""What `python train.py` says to mistakes: one message, exit status 1, no traceback."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.optim.lrr=1"], "unknown config key optim.lrr; did you mean optim.lr"),
    (["--config=nothing.py"], "the config file can't be read: [Errno 2] No such file"),
    (
      [f"--config={ROOT}/configs/paper/fcn.py:fcn4s"],
      "recipe 'fcn4s' is unknown; choose from fcn32s, fcn16s, fcn8s, fcn8s_at_once",
    ),
    (["--config.optim.lr=-1"], "optim.lr: -1.0 must be above 0"),
    ([f"--config={ROOT}/configs/folder.py"], "data.root is missing"),
  ],
)
def test_mistakes(arguments, message, tmp_path):
  command = [sys.executable, str(ROOT / "train.py"), *arguments, f"--workdir={tmp_path}/run"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1].startswith("error: ")
  assert message in result.stderr
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "run").exists()
