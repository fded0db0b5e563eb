"""The `jseg` command: a parser over the files in `jseg/commands`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from jseg.allocator import keep_freed_memory
from jseg.commands.common import run_or_exit, split_overrides
from jseg.install import versions
from jseg.xla_flags import set_cpu_flags

COMMANDS = (
  "train",
  "configs",
  "config",
  "models",
  "get_data",
  "check_data",
  "show_batches",
  "evaluate",
  "compare",
  "predict",
  "export",
  "tune_crf",
  "find_lr",
  "import_weights",
)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; a user's mistake prints one message and exits with status 1."""
  keep_freed_memory()
  set_cpu_flags()
  words = list(sys.argv[1:] if argv is None else argv)
  others, overrides = split_overrides(words)
  parser = make_parser()
  arguments = parser.parse_args(others)
  if overrides and not getattr(arguments, "takes_overrides", False):
    parser.parse_args(words)  # which says that it doesn't know them
  arguments.overrides = overrides
  run_or_exit(lambda: arguments.run(arguments))


class Version(argparse.Action):
  """Prints versions and devices, and exits."""

  def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any):
    super().__init__(option_strings, dest, nargs=0, **kwargs)

  def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
    """Prints; JAX looks for devices only now."""
    print("\n".join(f"{name:<9} {value}" for name, value in versions().items()))
    parser.exit()


def make_parser() -> argparse.ArgumentParser:
  """Returns the parser of all commands."""
  parser = argparse.ArgumentParser(prog="jseg", description="Classic segmentation networks on JAX.")
  parser.add_argument(
    "--version", action=Version, help="print versions and devices, for a bug report, and exit"
  )
  commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
  for name in COMMANDS:
    command = importlib.import_module(f"jseg.commands.{name}")
    sub = commands.add_parser(
      name.replace("_", "-"),
      help=command.HELP,
      description=command.HELP,
      epilog=f"examples:\n{command.EXAMPLES}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    command.add_arguments(sub)
    sub.set_defaults(run=command.run)
  return parser
