"""The batch of a step whose loss wasn't finite: its files by name, saved and drawn."""

import io
from collections import deque
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jseg import hosts
from jseg.data import Examples, training_indices
from jseg.outputs import WriteError, write_bytes
from jseg.preview import make_augmented
from jseg.report import save_previews
from jseg.run import Run
from jseg.step import shard
from jseg.tasks import Task
from jseg.types import Array, Batch

_NAMED = 8  # files in the message


class Suspects:
  """Keeps the batches of the last steps, to tell which one went wrong.

  Args:
    run: the run.
    task: its task.
    source: its training examples.
    key: the run's random key.
    count: batches to keep.
  """

  def __init__(self, run: Run, task: Task, source: Examples, key: Array, count: int):
    self._run, self._task, self._source, self._key = run, task, source, key
    self._batches: deque[tuple[int, Batch]] = deque(maxlen=count)

  def add(self, step: int, batch: Batch) -> None:
    """Takes this process's part of a step's batch."""
    self._batches.append((step, batch))

  def explain(self, step: int) -> str:
    """Saves a step's batch, and returns what is to be said of it.

    Of several processes, the first one saves its part and names the files of the whole.
    """
    batch = dict(self._batches).get(step)
    if batch is None:
      return ""
    names = self._names(step)
    first = jax.process_index() * len(batch["image"])
    own = names[first : first + len(batch["image"])]
    shown = ", ".join(names[:_NAMED]) + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
    found = f"The step's batch is {shown}{_not_finite(batch, own)}"
    if not hosts.is_first():
      return found
    try:
      return f"{found}. {self._save(step, batch, own)}"
    except WriteError as error:  # what went wrong first is to be told
      return f"{found}. It isn't saved: {error}"

  def _names(self, step: int) -> list[str]:
    config = self._run.config
    indices = training_indices(
      len(self._source), batch_size=config.data.batch_size, seed=config.seed, batch=step - 1
    )
    return [self._source[index]["name"] for index in indices]

  def _save(self, step: int, batch: Batch, names: Sequence[str]) -> str:
    path = self._run.files.suspect(step)
    content = io.BytesIO()
    np.savez_compressed(content, **batch, name=np.array(names), step=step)
    write_bytes(path, content.getvalue())
    look = f'It is saved, as it was read: numpy.load("{path}")'
    if jax.process_count() > 1:  # augmentation would need all of them
      return f"{look}, the part of process 0"
    picture = path.with_suffix(".png")
    augmented = make_augmented(self._task)
    split = shard(batch, jax.local_device_count())
    images, targets = augmented(split, jax.random.fold_in(self._key, step - 1))
    save_previews(self._task.target_pictures(images, targets), self._task.legend(), picture)
    return f"{look}; and drawn, as the network saw it: {picture}"


def _not_finite(batch: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
  """Says which examples hold numbers that aren't finite."""
  for field, values in batch.items():
    if np.issubdtype(values.dtype, np.floating):
      bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
      if bad.any():
        which = ", ".join(name for name, wrong in zip(names, bad, strict=True) if wrong)
        return f"; {field} itself isn't finite in {which}: mend the file"
  return ""
