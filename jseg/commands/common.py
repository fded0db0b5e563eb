"""What several commands share: arguments that mean the same, and start-up."""

import argparse
import collections
import contextlib
import errno
import os
import pathlib
import sys
import warnings
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from jseg import config as configs
from jseg import console, hosts, recipes
from jseg.crf import params_from_dict, parse_values
from jseg.loop import use_compilation_cache
from jseg.run import Run
from jseg.tasks.inference import PROTOCOLS
from jseg.types import InputError

# What isn't the program's fault but the place's: full, read-only, of somebody else.
_PLACES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

_PREFIX = "--config."


def use_cpu_cores(batch_size: int | None = None) -> None:
  """Makes a CPU look like several devices, so that a batch is spread over its cores.

  XLA computes convolutions of 64 channels or fewer on one core. It changes nothing where there is
  an accelerator, where JAX_NUM_CPU_DEVICES says how many there are to be, or once JAX has looked
  for devices.

  Args:
    batch_size: number that the number of devices must divide; None where any does.
  """
  if "JAX_NUM_CPU_DEVICES" not in os.environ:
    devices = [n for n in (1, 2, 4) if n <= (os.cpu_count() or 1)]
    fitting = [n for n in devices if batch_size is None or batch_size % n == 0]
    with contextlib.suppress(RuntimeError):  # too late
      jax.config.update("jax_num_cpu_devices", fitting[-1])


def run_or_exit(run: Callable[[], object]) -> None:
  """Calls `run`; an InputError becomes one message on stderr and exit status 1."""
  # It warns of damaged tags without a file's name; what they mean is told with it.
  warnings.filterwarnings("ignore", module=r"PIL\.")
  try:
    run()
  except KeyboardInterrupt:
    sys.exit(130)  # as a shell tells that it was stopped
  except OSError as error:
    if error.errno not in _PLACES or error.filename is None:
      raise
    console.end(f"{error.filename}: {error.strerror}; change that, or name another place")
  except InputError as error:
    sys.unraisablehook = lambda _: None  # for tasks that a failed save has left behind
    console.end(str(error))


def add_hosts(parser: argparse.ArgumentParser) -> None:
  """Adds what says that the command is one of several processes."""
  group = parser.add_argument_group(
    "several hosts",
    "One process per host takes a part of every batch. All share the run directory.",
  )
  group.add_argument(
    "--distributed",
    action="store_true",
    help="join the others, found through SLURM, MPI, Kubernetes, a TPU slice, or "
    "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
  )
  group.add_argument(
    "--coordinator", metavar="HOST:PORT", help="join the others through this address of process 0"
  )
  group.add_argument("--num-processes", metavar="N", type=int, help="number of processes")
  group.add_argument(
    "--process-id", metavar="I", type=int, help="number of this process, from 0 to N - 1"
  )


def join_hosts(arguments: argparse.Namespace, run: str | pathlib.Path) -> bool:
  """Joins the other processes if there are any to join; process 0 alone prints from then on.

  Args:
    arguments: arguments of the command, with those of `add_hosts`.
    run: the run directory.

  Returns:
    Whether there are.
  """
  given = (arguments.coordinator, arguments.num_processes, arguments.process_id)
  several = arguments.distributed or any(value is not None for value in given)
  if several:
    hosts.connect(*given, run=run)
    console.CONSOLE.quiet = not hosts.is_first()
  return several


def add_config(parser: argparse.ArgumentParser) -> None:
  """Adds --config; --config.KEY=VALUE is taken out of the command line before it is parsed."""
  parser.add_argument(
    "--config",
    metavar="RECIPE",
    default=recipes.QUICKSTART,
    help="a recipe's name (`jseg configs` lists them) or a Python file with get_config(); after "
    f"a colon its variant (default: %(default)s); {_PREFIX}KEY=VALUE changes one of its values "
    "(`jseg config RECIPE` lists them)",
  )
  parser.set_defaults(takes_overrides=True)


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
  """Takes --config.KEY=VALUE, and --config.KEY VALUE, out of a command line.

  Returns:
    (other words, ["KEY=VALUE", ...]).
  """
  others: list[str] = []
  overrides: list[str] = []
  rest = collections.deque(argv)
  while rest:
    word = rest.popleft()
    if not word.startswith(_PREFIX):
      others.append(word)
      continue
    key, equals, value = word.removeprefix(_PREFIX).partition("=")
    if not equals and rest and not rest[0].startswith("--"):
      value = rest.popleft()
    overrides.append(f"{key}={value}")
  return others, overrides


def read_config(arguments: argparse.Namespace) -> ConfigDict:
  """Returns the configuration that --config and --config.KEY=VALUE ask for.

  Raises:
    InputError: there is no such recipe or key, or a value is impossible.
  """
  config = recipes.read(arguments.config)
  return configs.change(config, configs.parse_changes(arguments.overrides, _PREFIX, config))


def add_run(parser: argparse.ArgumentParser) -> None:
  """Adds RUN, --checkpoint and --set."""
  parser.add_argument(
    "run_directory", metavar="RUN", help="a run directory, the --workdir of jseg train"
  )
  parser.add_argument(
    "--checkpoint",
    default="best",
    help="best, latest, a step, or average:N of the last N (default: %(default)s)",
  )
  add_set(parser)


def add_set(parser: argparse.ArgumentParser) -> None:
  """Adds --set KEY=VALUE."""
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="another value in the run's configuration, such as model.output_stride=8",
  )


def add_dataset(parser: argparse.ArgumentParser) -> None:
  """Adds --split and --root."""
  parser.add_argument("--split", help="default: the validation split of the run")
  parser.add_argument("--root", help="where the data set's files are, if they have moved")


def add_protocol(parser: argparse.ArgumentParser) -> None:
  """Adds --protocol."""
  parser.add_argument(
    "--protocol",
    choices=PROTOCOLS,
    help="how the network looks at an image: shrink (to its canvas), window (overlapping and "
    "blended), tile (U-Net's), or as papers measure: deeplab_crf, deeplab, pspnet, nnunet; objects "
    "take shrink and window; details by --set inference.KEY=VALUE (default: the run's)",
  )


def add_crf(parser: argparse.ArgumentParser) -> None:
  """Adds --crf and --crf-params, which `changes` reads."""
  parser.add_argument(
    "--crf",
    action="store_true",
    help="refine what the network says by a dense CRF on the image's own colors, as --set "
    "inference.crf=True does; its parameters are the run's, else those of RUN/crf.json (jseg "
    "tune-crf), else DeepLab V2's",
  )
  parser.add_argument(
    "--crf-params",
    metavar="PARAMS",
    help="KEY=VALUE,... or a JSON file: parameters that differ from these; implies --crf",
  )


def changes(arguments: argparse.Namespace) -> dict[str, object]:
  """Returns what --set, --crf and --crf-params ask for; of a RUN's words, --set keeps words.

  Raises:
    InputError: one isn't KEY=VALUE, there is no such parameter, or RUN is no run directory.
  """
  run = getattr(arguments, "run_directory", None)
  config = Run.open(run).config if run and arguments.set else None
  return {**_crf_changes(arguments), **configs.parse_changes(arguments.set, "--set ", config)}


def _crf_changes(arguments: argparse.Namespace) -> dict[str, object]:
  """What `add_crf` adds, as values of the protocol."""
  if "crf" not in arguments:
    return {}
  text = arguments.crf_params
  if text is None:
    return {"inference.crf": True} if arguments.crf else {}
  params = parse_values(text)
  params_from_dict(params)  # which refuses what is no parameter
  return {"inference.crf": True, **{f"inference.crf_params.{k}": v for k, v in params.items()}}


def open_run(arguments: argparse.Namespace) -> Run:
  """Opens RUN with the changes of --set, and enables its compilation cache."""
  run = Run.open(arguments.run_directory, changes(arguments))
  use_compilation_cache(run.config)
  return run
