"""Trains a network: python train.py [--config=FILE] [--workdir=DIR] [--config.KEY=VALUE ...].

Examples:
  python train.py
  python train.py --config=configs/folder.py --config.data.root=my_data --workdir=runs/mine
  python train.py --config=configs/quickstart.py --config.optim.lr=0.1 --workdir=runs/lr_0.1

Run it again with the same arguments to go on where the last checkpoint ends. On several hosts,
start it on each with --distributed.
"""

import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jseg.cli import run_or_exit, use_cpu_cores
from jseg.config import default, flatten, unknown_key
from jseg.loop import train
from jseg.types import InputError

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "the configuration; --config.KEY=VALUE changes one key"
)
_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "the run directory")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "take part in a run on several hosts")


def parse(argv: list[str]) -> list[str]:
  """Parses the flags; a config that can't be read or has no such key ends with one message."""
  try:
    return app.parse_flags_with_usage(argv)
  except InputError as error:  # from the config file
    sys.exit(f"error: {error}")
  except AttributeError:
    known = list(dict(flatten(default())))
    given = [word[9:].partition("=")[0] for word in argv if word.startswith("--config.")]
    sys.exit(f"error: {unknown_key(next((k for k in given if k not in known), ''), known)}")


def main(_: list[str]) -> None:
  """Trains."""
  try:
    config = _CONFIG.value
    batch_size = config.data.batch_size
  except OSError as error:
    sys.exit(f"error: the config file can't be read: {str(error).splitlines()[-1].strip()}")
  logging.set_verbosity(logging.ERROR)  # of libraries; what we have to say is printed
  if _DISTRIBUTED.value:
    jax.distributed.initialize()
  else:
    use_cpu_cores(batch_size)
  run_or_exit(lambda: train(config, _WORKDIR.value))


if __name__ == "__main__":
  if not any(word.split("=")[0] in ("--config", "-config") for word in sys.argv):
    # Not the flag's default, which would be read before errors can be told kindly.
    sys.argv.insert(1, f"--config={pathlib.Path(__file__).parent / 'configs' / 'quickstart.py'}")
  app.run(main, flags_parser=parse)
