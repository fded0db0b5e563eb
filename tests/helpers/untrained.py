"""A run that was not trained: it has random values, and is made in seconds."""

import jax

import jseg.config
from helpers.tiny import tiny_config
from jseg.data import ClassInfo
from jseg.run import Run
from jseg.state import create_train_state


def make_run(folder, model="unet", classes=("a", "b", "c"), data_dir="", **knobs):
  """Writes a run with a checkpoint of random values, but for no zeros that would hide a fault.

  Args:
    folder: the run directory to make; returned.
    model: name of the network.
    classes: names of the classes.
    data_dir: where the prepared set is kept.
    **knobs: arguments of the network, beside its tiny preset.
  """
  config = tiny_config(data_dir, model, knobs)
  network = jseg.config.make_model(config, len(classes))
  optimizer, _ = jseg.config.make_optimizer(config)
  state = create_train_state(network, optimizer, jax.random.key(0), (*config.data.size, 3))
  stats = jax.tree.map(lambda a: a + 0.1, state.batch_stats)
  run = Run(folder, config, ClassInfo(tuple(classes)))
  run.write()
  checkpoints = run.checkpoints(read_only=False)
  checkpoints.save(state.replace(batch_stats=stats), {})
  checkpoints.close()
  return folder
