"""Two processes at a time, one time for each line that it reads: PORT OUTPUT ARGUMENTS, as JSON.

ARGUMENTS are RUN DATA_DIR [STOP] or KILLED [FOLDER]. Both train one tiny run; with STOP, process 1
gets SIGTERM after that step. Without RUN they only agree on what process 0 finds wrong, and find
out that they were started differently; with FOLDER they save there, and the disk is full. Then the
process KILLED is, while the other waits for it.

What each prints goes to a file, OUTPUT and its number; how they ended is written as a line. They
are forks of this process, which has imported what they need and nothing more: importing takes
longer than most of what they do. It has no devices and has met nobody.
"""

import json
import os
import signal
import sys

import flax.linen as nn
import jax
import pytest
import tensorboardX  # noqa: F401
import tensorflow_datasets  # noqa: F401

import jseg.evaluation  # noqa: F401
from jseg import hosts
from jseg.loop import train
from jseg.models import unet
from jseg.nn import avg_pool
from jseg.types import InputError


def several_config(data_dir):
  """Augmentation, batch norm, dropout, void and a batch of eight that two devices share."""
  from helpers.tiny import tiny_config

  config = tiny_config(
    data_dir, knobs={"dropout": 0.3}, steps=20, eval_every=20, checkpoint_every=20, samples=0
  )
  config.augment.rotation = 20.0
  config.augment.brightness = 0.2
  return config


def smooth(monkeypatch):
  """Takes the kinks out of U-Net: softplus for ReLU, means for maxima.

  Sums over devices round differently in one process and in two. That moves a value over a kink now
  and then, one in a million, and the gradient then jumps by that pixel's share.
  """
  monkeypatch.setattr(nn, "relu", nn.softplus)
  monkeypatch.setattr(unet, "max_pool", lambda x: avg_pool(x, 2, 2))


def save_on_a_full_disk(folder):
  """Process 0 can't finish its second checkpoint, and then it can."""
  from test_checkpoint import assert_equal, make_state

  from helpers.chaos import Writes
  from jseg.checkpoint import Checkpoints

  checkpoints = Checkpoints(folder)
  writes = Writes(folder, "full")

  def save(step):
    checkpoints.save(make_state(step), {"next_index": step})
    checkpoints.wait()

  save(1)
  writes.number = 2 * writes.count  # the last write of the next, which is in the background
  try:
    save(2)
  except InputError as error:
    print(error, flush=True)
  writes.close()
  checkpoints = Checkpoints(folder)
  for step in (1, 2):
    restored, position = checkpoints.restore(make_state(0))
    assert_equal(restored, make_state(step))
    assert position == {"next_index": step}
    save(2)
    checkpoints = Checkpoints(folder)


def agree(killed, folder):
  def fail():
    raise InputError("the file a.png is damaged")

  assert hosts.everywhere(True)
  assert not hosts.everywhere(hosts.is_first())
  made = hosts.first_then_others(lambda: f"made by {hosts.is_first()}")
  try:
    hosts.on_first(fail)
  except InputError as error:
    print(f"{error}; {made}")
  try:
    hosts.agree({"jseg": "0.1.0", "data.batch_size": 8 if hosts.is_first() else 16})
  except InputError as error:
    print(error, flush=True)
  if folder:
    save_on_a_full_disk(folder)
  if jax.process_index() == killed:
    os.kill(os.getpid(), signal.SIGKILL)
  hosts.everywhere(True)


def run_one(port, index, run, data_dir="", stop=0):
  if isinstance(run, int):
    hosts.HEARTBEAT_SECONDS = 10  # it waits for one that is lost
  hosts.connect(f"localhost:{port}", 2, index, run=str(run))
  if isinstance(run, int):
    return agree(run, folder=data_dir)

  def on_log(step, metrics):
    if step == stop and index == 1:
      os.kill(os.getpid(), signal.SIGTERM)

  smooth(pytest.MonkeyPatch())
  train(several_config(data_dir), run, on_log=on_log)


def fork(output):
  """The new process's number in the one that goes on; 0 in the new one, which prints to a file."""
  number = os.fork()
  if not number:
    with open(output, "wb") as file:
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
  return number


def main():
  for line in sys.stdin:
    port, output, arguments = json.loads(line)
    numbers = []
    for index in range(2):
      numbers.append(fork(f"{output}{index}"))
      if not numbers[-1]:
        return run_one(port, index, *arguments)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers]
    print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
  main()
