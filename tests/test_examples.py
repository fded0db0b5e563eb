"""Every example runs from the command line, in a small setting."""

import os
import pathlib
import re
import subprocess
import sys
import time

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


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "multi_host").iterdir()), ids=str)
def test_scripts_for_several_hosts_are_written_correctly(path):
  subprocess.run(["bash", "-n", str(path)], check=True)
  # Every line that starts a training names arguments that there are.
  (words,) = re.findall(r"train [^\n]*", path.read_text().replace("\\\n", " "))[-1:]
  known = {"--distributed", "--coordinator", "--num-processes", "--process-id"}
  assert set(re.findall(r"--[a-z-]+", words)) <= known


def programs(folder):
  """Stands in for ssh, which runs the command here, and for jseg, which tells what it was given."""
  folder.mkdir()
  (folder / "ssh").write_text('#!/bin/bash\necho "on $1" >>reached\nexec bash -c "$2"\n')
  (folder / "jseg").write_text(
    '#!/bin/bash\necho "$@"\ntrap "echo saved; exit 0" TERM\n'
    'if [ -n "$STOP" ]; then touch "started$$"; while true; do sleep 0.1; done; fi\n'
    '[[ "$*" == *--process-id=1* ]] && exit 3\nexit 0\n'
  )
  for path in folder.iterdir():
    path.chmod(0o755)
  return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_two_machines_run_the_same_command(tmp_path):
  script = str(ROOT / "examples" / "multi_host" / "two_machines.sh")
  environment = {**programs(tmp_path / "bin"), "PORT": "8000"}
  command = ["bash", script, "alpha beta", "--workdir=a b", "--config=camvid"]
  result = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert result.returncode == 3, result.stderr
  assert sorted(result.stdout.splitlines()) == [
    "train --workdir=a b --config=camvid --coordinator=alpha:8000 --num-processes=2 "
    f"--process-id={i}"
    for i in range(2)
  ]
  assert sorted((tmp_path / "reached").read_text().split("\n")) == ["", "on alpha", "on beta"]


def test_two_machines_are_stopped_by_one_signal(tmp_path):
  script = str(ROOT / "examples" / "multi_host" / "two_machines.sh")
  environment = {**programs(tmp_path / "bin"), "STOP": "1"}
  process = subprocess.Popen(
    ["bash", script, "alpha", "--config=camvid"],
    cwd=tmp_path,
    env=environment,
    stdout=subprocess.PIPE,
    text=True,
  )
  while not list(tmp_path.glob("started*")):
    time.sleep(0.05)
  process.terminate()
  assert "saved" in process.communicate(timeout=60)[0]
  assert process.returncode == 0
  assert list(tmp_path.glob(".jseg_process.*")) == []
