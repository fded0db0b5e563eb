"""Trains a network: python train.py [--config=FILE] [--workdir=DIR] [--config.KEY=VALUE ...].

Examples:
  python train.py
  python train.py --config=configs/folder.py --config.data.root=my_data --workdir=runs/mine
  python train.py --config=configs/quickstart.py --config.optim.lr=0.1 --workdir=runs/lr_0.1

Run it again with the same arguments to go on where the last checkpoint ends. On several hosts,
start it on each with --distributed.
"""

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jseg.cli import run_or_exit, use_cpu_cores
from jseg.loop import train

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/quickstart.py", "the configuration; --config.KEY=VALUE changes one key"
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "the run directory")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "take part in a run on several hosts")


def main(_: list[str]) -> None:
  """Trains."""
  logging.set_verbosity(logging.ERROR)  # of libraries; what we have to say is printed
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  else:
    use_cpu_cores(_CONFIG.value.data.batch_size)
  run_or_exit(lambda: train(_CONFIG.value, _WORKDIR.value))


if __name__ == "__main__":
  app.run(main)
