"""`jseg predict`: predicts images or volumes."""

import argparse
import pathlib

from jseg.commands import common
from jseg.predict import Segmenter
from jseg.report import CONSOLE, progress

HELP = "segment images or NIfTI volumes: class indices or objects, and overlays"
EXAMPLES = """\
  jseg predict runs/mine photo.jpg --out out
  jseg predict runs/mine photos/ --out out
  jseg predict runs/hippocampus scans/ --out out"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  common.add_run(parser)
  parser.add_argument("images", nargs="+", type=pathlib.Path, help="image files or folders")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
  parser.add_argument(
    "--tile", action="store_true", help="cut large images into overlapping tiles, don't shrink them"
  )
  parser.add_argument("--margin", type=int, help="pixels that tiles overlap on every side")
  common.add_crf(parser, "refine by a dense CRF on the image's own colors")


def run(arguments: argparse.Namespace) -> None:
  """Predicts each file and prints what was found."""
  opened = common.open_run(arguments)
  segmenter = Segmenter.from_run(
    opened,
    arguments.checkpoint,
    tile=arguments.tile,
    margin=arguments.margin,
    crf=common.crf_params(arguments, opened),
  )
  task = segmenter.task
  files = common.input_files(arguments.images, task.suffixes)
  report = task.prediction_report(arguments.out)
  for file in progress(files, "predicting", len(files)):
    prediction = segmenter(task.read(file))
    prediction.save(arguments.out, common.stem(file), like=file)
    report.add(file, prediction)
  CONSOLE.print(report.finish())
  CONSOLE.print(f"written to {arguments.out}")
