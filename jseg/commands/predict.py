"""`jseg predict`: predicts images or volumes."""

import argparse
import pathlib

from jseg.commands import common
from jseg.console import CONSOLE
from jseg.predict import Predicted, predict_files
from jseg.types import InputError

HELP = "segment images or NIfTI volumes: class indices or objects, and overlays"
EXAMPLES = """\
  jseg predict runs/mine photo.jpg --out out
  jseg predict runs/mine photos/ --out out
  jseg predict runs/mine aerial/ --out out --protocol window
  jseg predict runs/hippocampus scans/ --out out
  jseg predict runs/pspnet leftImg8bit/test --out results --write mask --source-ids

Stopped or failed in part, the same command goes on with what is missing."""

_MOST = 50  # failures that are told; all are in the record


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  common.add_run(parser)
  parser.add_argument("images", nargs="+", type=pathlib.Path, help="image files or folders")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
  parser.add_argument(
    "--overwrite",
    action="store_true",
    help="predict all again, and replace what bears the name of a result",
  )
  parser.add_argument(
    "--write",
    nargs="+",
    default=[],
    metavar="WHAT",
    help="what is written of each image: mask, overlay, legend, confidence (the probability of the "
    "class, 0 to 255); of objects mask, overlay (default: all but confidence)",
  )
  parser.add_argument(
    "--source-ids",
    action="store_true",
    help="masks hold the data set's own values, such as Cityscapes' label ids, not class numbers",
  )
  common.add_protocol(parser)
  common.add_crf(parser)


def run(arguments: argparse.Namespace) -> None:
  """Predicts the files and prints what was found, and what became of them.

  Raises:
    InputError: a file failed; the message names all that did.
  """
  opened = common.open_run(arguments)
  result = predict_files(
    opened,
    arguments.images,
    arguments.out,
    checkpoint=arguments.checkpoint,
    changes=common.changes(arguments),
    overwrite=arguments.overwrite,
    write=arguments.write,
    source_ids=arguments.source_ids,
    protocol=arguments.protocol,
  )
  if result.done or result.before:
    CONSOLE.print(result.table)
  for note in result.inputs.notes:
    CONSOLE.print(str(note), style="yellow", soft_wrap=True)
  CONSOLE.print(summary(result))
  CONSOLE.print(f"written to {arguments.out}", soft_wrap=True)
  if result.failed:
    reasons = list(result.failed.values())
    more = [f"... and {len(reasons) - _MOST} more"] if len(reasons) > _MOST else []
    total = len(reasons) + len(result.done) + len(result.before)
    head = f"{len(reasons)} of {total} file(s) failed; the same command tries them again:"
    raise InputError("\n".join([head, *reasons[:_MOST], *more]))


def summary(result: Predicted) -> str:
  """Returns how many files were predicted, done before, and failed."""
  before = f", {len(result.before)} skipped because they were done" if result.before else ""
  return f"{len(result.done)} predicted{before}, {len(result.failed)} failed"
