"""What `python train.py` says to mistakes: one message, exit status 1, no traceback."""

import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from jseg.commands.train import default_workdir

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = str(ROOT / "train.py")


@pytest.fixture
def train_script(monkeypatch, tmp_path):
  """Runs the script in this process."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments])
    runpy.run_path(SCRIPT, run_name="__main__")

  return run


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--config.optim.lrr=1"], "unknown config key optim.lrr; did you mean optim.lr"),
    (
      # Compared with the keys of the named configuration, not with U-Net's.
      [
        f"--config={ROOT}/configs/mask_rcnn_shapes.py",
        "--config.model.detections=5",
        "--config.model.detection_nsm=1",
      ],
      "unknown config key model.detection_nsm; did you mean model.detection_nms",
    ),
    (["--config=nothing.py"], "there is no file nothing.py; `jseg configs` lists recipes"),
    (
      [f"--config={ROOT}/configs/paper/fcn.py:fcn4s"],
      "recipe 'fcn4s' is unknown; choose from fcn32s, fcn16s, fcn8s, fcn8s_at_once",
    ),
    (["--config.optim.lr=-1"], "optim.lr: -1.0 must be above 0"),
    ([f"--config={ROOT}/configs/folder.py"], "data.root is missing"),
    # A word that looks like a number stays a word.
    ([f"--config={ROOT}/configs/folder.py", "--config.data.root=2012"], "2012"),
    (["--config.inference.crf_params=3"], "inference.crf_params: a section takes no value; give"),
    (["--config.data.max_pixels=2000000000"], "data.max_pixels: 2000000000 must be a whole number"),
    (["--config.optim.lr"], "optim.lr: '' must be of the kind of its default"),
  ],
)
def test_mistakes(train_script, arguments, message, tmp_path):
  with pytest.raises(SystemExit, match="^error: .*" + re.escape(message)):
    train_script(*arguments, f"--workdir={tmp_path}/run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("config", "workdir"),
  [
    ("quickstart", "runs/quickstart"),
    ("paper/fcn:fcn16s", "runs/paper_fcn_fcn16s"),
    ("folders/mine.py:wide", "runs/mine_wide"),
  ],
)
def test_every_recipe_has_a_place_of_its_own(config, workdir, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "folders").mkdir()
  (tmp_path / "folders" / "mine.py").write_text("")
  assert default_workdir(config) == pathlib.Path(workdir)


def test_a_mistake_ends_the_process_without_a_traceback(tmp_path):
  command = [sys.executable, SCRIPT, "--config.optim.lr=-1", f"--workdir={tmp_path}/run"]
  result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1].startswith("error: optim.lr: -1.0 must be above 0")
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "run").exists()


def test_a_word_that_is_no_flag_is_not_passed_over(train_script, tmp_path, capsys):
  with pytest.raises(SystemExit, match="2"):
    train_script("configs/camvid.py", f"--workdir={tmp_path}/run")
  assert "unrecognized arguments: configs/camvid.py" in capsys.readouterr().err
  assert not (tmp_path / "run").exists()
