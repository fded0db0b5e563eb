"""What `python train.py` says to mistakes: one message, exit status 1, no traceback."""

import pathlib
import re
import runpy
import subprocess
import sys

import pytest
from absl import flags

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = str(ROOT / "train.py")


@pytest.fixture
def train_script(monkeypatch, tmp_path):
  """Runs the script in this process; its flags are forgotten afterwards."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    runpy.run_path(SCRIPT, run_name="__main__")

  yield run
  for name in list(flags.FLAGS):
    if name.partition(".")[0] in ("config", "workdir", "distributed"):
      delattr(flags.FLAGS, name)
  flags.FLAGS.unparse_flags()


# ml_collections reads config files this way.
@pytest.mark.filterwarnings("ignore:the load_module\\(\\) method:DeprecationWarning")
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
def test_mistakes(train_script, arguments, message, tmp_path):
  with pytest.raises(SystemExit, match="^error: .*" + re.escape(message)):
    train_script(*arguments, f"--workdir={tmp_path}/run")
  assert not (tmp_path / "run").exists()


def test_a_mistake_ends_the_process_without_a_traceback(tmp_path):
  command = [sys.executable, SCRIPT, "--config.optim.lr=-1", f"--workdir={tmp_path}/run"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1].startswith("error: optim.lr: -1.0 must be above 0")
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "run").exists()
