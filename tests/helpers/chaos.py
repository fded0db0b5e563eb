"""Kills a process, or fills its disk, at a chosen write; as a program, a run that this happens to.

helpers/chaos.py RUN DATA_DIR STEPS WHAT NUMBER: trains the tiny run, and at the write of this
number kills the process ("kill"), or lets no write succeed from it on ("full"); NUMBER 0: never.
Prints how many writes there were, for whoever chooses the number.
"""

import errno
import os
import pathlib
import signal
import sys

WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Writes:
  """Counts what changes files below a folder, of which Python tells before it is done.

  Args:
    folder: the folder.
    what: "kill" or "full".
    number: the write at which it happens, from 1.
  """

  def __init__(self, folder, what="kill", number=0):
    self.folder, self.what, self.number = os.path.realpath(folder), what, number
    self.count, self.places = 0, []
    self.ends = False
    sys.addaudithook(self._heard)  # for good: Python takes none out

  def close(self):
    """Hears nothing any more."""
    self.ends = True

  def _heard(self, event, arguments):
    if self.ends:
      return
    if event == "open":
      path, _, flags = arguments
      writes = bool(flags & _FLAGS)
    elif event in WRITES:
      path, writes = arguments[0], True
    else:
      return
    if not writes or not isinstance(path, str | bytes | os.PathLike):
      return
    path = os.path.realpath(os.fsdecode(path))
    if not (path == self.folder or path.startswith(self.folder + os.sep)):
      return  # also of a folder whose name begins likewise
    self.count += 1
    self.places.append(f"{event} {path[len(self.folder) + 1 :]}")
    if self.number and self.count >= self.number:
      if self.what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
      elif event in ("open", "os.mkdir", "os.rename"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


if __name__ == "__main__":
  from helpers.tiny import tiny_config
  from jseg.commands.common import run_or_exit
  from jseg.loop import train

  run, data_dir, steps, what, number = sys.argv[1:]
  config = tiny_config(data_dir, steps=int(steps))
  pathlib.Path(run).mkdir(parents=True, exist_ok=True)
  writes = Writes(run, what, int(number))
  run_or_exit(lambda: train(config, run))
  print("writes:", writes.count)
  if "JSEG_PLACES" in os.environ:
    print("\n".join(writes.places))
