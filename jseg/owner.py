"""Which process a file belongs to, and whether that process is still there."""

import dataclasses
import datetime
import os
import re
import socket

_UNSAFE = re.compile(r"[^A-Za-z0-9.]")  # of a file's name


@dataclasses.dataclass(frozen=True)
class Owner:
  """A process.

  Attributes:
    host: name of its machine.
    pid: its number there.
    since: when it began to own something, in ISO 8601.
  """

  host: str
  pid: int
  since: str

  @classmethod
  def here(cls) -> "Owner":
    """This process, now."""
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return cls(_UNSAFE.sub("_", socket.gethostname()), os.getpid(), now)

  @property
  def is_near(self) -> bool:
    """Whether it is, or was, on this machine."""
    return self.host == Owner.here().host

  def is_gone(self) -> bool:
    """Whether it has ended for certain, which only a process of this machine is known to have."""
    return self.is_near and not _is_running(self.pid)

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host} since {self.since}"


def _is_running(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except (OSError, OverflowError):
    pass  # of another user; or not a number that tells anything
  return True
