"""The `jseg` command."""

import argparse
import ast
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from jseg import data, models
from jseg.checkpoint import load_run
from jseg.crf import CrfParams
from jseg.crf.settings import parse_params, run_params
from jseg.evaluate import Evaluation, evaluate_run
from jseg.export import export_run
from jseg.imports import import_run
from jseg.loop import use_compilation_cache
from jseg.predict import InstanceSegmenter, Segmenter
from jseg.report import CONSOLE, coco_results, progress
from jseg.tune_crf import RANGES, tune_crf
from jseg.types import InputError


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command line; a user's mistake prints one message and exits with status 1."""
  arguments = _parser().parse_args(argv)
  run_or_exit(lambda: arguments.run(arguments))


def use_cpu_cores(batch_size: int | None = None) -> None:
  """Makes a CPU look like several devices, so that a batch is spread over its cores.

  XLA computes convolutions of 64 channels or fewer on one core. It changes nothing where there is
  an accelerator, where JAX_NUM_CPU_DEVICES says how many there are to be, or once JAX has looked
  for devices.

  Args:
    batch_size: which the number of devices divides; None where any does.
  """
  if "JAX_NUM_CPU_DEVICES" not in os.environ:
    devices = [n for n in (1, 2, 4) if n <= (os.cpu_count() or 1)]
    fitting = [n for n in devices if batch_size is None or batch_size % n == 0]
    with contextlib.suppress(RuntimeError):  # too late
      jax.config.update("jax_num_cpu_devices", fitting[-1])


def run_or_exit(run: Callable[[], object]) -> None:
  """Calls `run`; an InputError becomes one message on stderr and exit status 1."""
  try:
    run()
  except InputError as error:
    sys.unraisablehook = lambda _: None  # for tasks that a failed save has left behind
    sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="jseg",
    description="Classic segmentation networks on JAX. Training: python train.py --help",
  )
  commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

  def command(name: str, run: Callable, description: str, example: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(
      name,
      help=description,
      description=description,
      epilog=f"examples:\n{example}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(run=run)
    return sub

  command("models", _models, "list the networks", "  jseg models")

  check = command(
    "check-data",
    _check_data,
    "look through a folder of images and masks for mistakes",
    "  jseg check-data data/camvid\n  jseg check-data data/camvid --sheet overlays.png",
  )
  check.add_argument("path", type=pathlib.Path, help="root of the data set")
  check.add_argument(
    "--sheet", type=pathlib.Path, default="contact_sheet.png", help="PNG of overlays to write"
  )

  evaluate = command(
    "evaluate",
    _evaluate,
    "measure a checkpoint on a split, at the images' original size",
    "  jseg evaluate runs/quickstart\n  jseg evaluate runs/camvid --split test\n"
    "  jseg evaluate runs/camvid --crf --boundary",
  )
  _add_run(evaluate)
  evaluate.add_argument("--split", help="default: the validation split of the run")
  evaluate.add_argument("--root", help="where the data set's files are, if they have moved")
  evaluate.add_argument("--batch-size", type=int, help="over all devices")
  evaluate.add_argument("--boundary", action="store_true", help="the IoU of boundaries too")
  evaluate.add_argument(
    "--rand", metavar="CLASS", help="the Rand score too, objects being the parts of this class"
  )
  _add_crf(evaluate, "measure what a dense CRF makes of it too")

  predict = command(
    "predict",
    _predict,
    "segment images or NIfTI volumes: class indices, overlay and legend",
    "  jseg predict runs/mine photo.jpg --out out\n  jseg predict runs/mine photos/ --out out\n"
    "  jseg predict runs/hippocampus scans/ --out out",
  )
  _add_run(predict)
  predict.add_argument("images", nargs="+", type=pathlib.Path, help="image files or folders")
  predict.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
  predict.add_argument(
    "--tile", action="store_true", help="cut large images into overlapping tiles, don't shrink them"
  )
  predict.add_argument("--margin", type=int, help="pixels that tiles overlap on every side")
  _add_crf(predict, "refine by a dense CRF on the image's own colours")

  export = command(
    "export",
    _export,
    "write a network with its weights as StableHLO, which runs without this library",
    "  jseg export runs/mine\n  jseg export runs/mine --size 480 640 --platforms cpu cuda",
  )
  _add_run(export)
  export.add_argument("--out", type=pathlib.Path, help="default: RUN/export/NETWORK.stablehlo")
  export.add_argument(
    "--size", type=int, nargs="+", metavar="N", help="height and width; default: the run's"
  )
  export.add_argument(
    "--platforms", nargs="+", default=["cpu", "cuda", "tpu"], help="default: cpu cuda tpu"
  )

  tune = command(
    "tune-crf",
    _tune_crf,
    "search the parameters of the CRF that --crf then uses, over the ranges of DeepLab's papers",
    "  jseg tune-crf runs/mine\n  jseg tune-crf runs/mine --images 100 --ranges v1",
  )
  _add_run(tune)
  tune.add_argument("--split", help="default: the validation split of the run")
  tune.add_argument("--root", help="where the data set's files are, if they have moved")
  tune.add_argument(
    "--images", type=int, default=20, help="of the split; the papers take 100 (default: 20)"
  )
  tune.add_argument(
    "--ranges", choices=list(RANGES), default="v2", help="DeepLab V1's or V2's (default: v2)"
  )
  tune.add_argument(
    "--crf-params", metavar="PARAMS", help="KEY=VALUE,... or a JSON file: what isn't searched"
  )

  weights = command(
    "import-weights",
    _import_weights,
    "make a run of weights that were trained elsewhere; nothing in the file is executed",
    "  jseg import-weights deeplabv3_resnet50_coco.pth --out runs/deeplab_v3\n"
    "  jseg import-weights fcn8s-atonce_from_caffe.pth --set model.at_once=True --out runs/fcn8s\n"
    "  jseg import-weights resnet50.safetensors --model deeplab_v3 --classes my_data/classes.json "
    "--out runs/start",
  )
  weights.add_argument("source", metavar="SRC", help="a .safetensors, .pth or .pt file")
  weights.add_argument("--model", help="the network, where the file is an ImageNet classifier")
  weights.add_argument("--out", type=pathlib.Path, required=True, help="run directory to make")
  weights.add_argument("--classes", type=pathlib.Path, help="a classes.json with names and colours")
  _add_set(weights)
  return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("run_directory", metavar="RUN", help="a run directory of train.py")
  parser.add_argument(
    "--checkpoint", default="best", help="best, latest or a step (default: %(default)s)"
  )
  _add_set(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="another value in the run's configuration, such as model.output_stride=8",
  )


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
  """What --set asks for, values read as Python's.

  Raises:
    InputError: one isn't KEY=VALUE.
  """
  changes: dict[str, Any] = {}
  for text in arguments.set:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
      raise InputError(f"--set {text}: give KEY=VALUE, as model.output_stride=8")
    changes[key] = value
    with contextlib.suppress(ValueError, SyntaxError):  # a word
      changes[key] = ast.literal_eval(value)
  return changes


def _add_crf(parser: argparse.ArgumentParser, what: str) -> None:
  parser.add_argument(
    "--crf",
    action="store_true",
    help=f"{what}; its parameters are those of RUN/crf.json (jseg tune-crf), else DeepLab V2's",
  )
  parser.add_argument(
    "--crf-params",
    metavar="PARAMS",
    help="KEY=VALUE,... or a JSON file: parameters that differ from these; implies --crf",
  )


def _crf(arguments: argparse.Namespace) -> CrfParams | None:
  if arguments.crf_params is not None:
    return parse_params(arguments.crf_params, run_params(arguments.run_directory))
  return run_params(arguments.run_directory) if arguments.crf else None


def _models(_: argparse.Namespace) -> None:
  table = Table("network", "parameters", "arguments")
  for name in models.names():
    knobs = ", ".join(f"{k}={v}" for k, v in models.knobs(name).items())
    table.add_row(name, f"{models.count_parameters(name, 21):,}", knobs)
  CONSOLE.print(table)
  CONSOLE.print("parameters: for 21 classes and RGB images")


def _check_data(arguments: argparse.Namespace) -> None:
  report = data.check_folder(arguments.path)
  CONSOLE.print(report.table())
  if data.contact_sheet(arguments.path, arguments.sheet):
    CONSOLE.print(f"overlays: {arguments.sheet}")
  if not report.ok:
    raise InputError(f"{arguments.path} has problems; see above")


def _evaluate(arguments: argparse.Namespace) -> None:
  use_cpu_cores()
  use_compilation_cache(load_run(arguments.run_directory)[0])
  result = evaluate_run(
    arguments.run_directory,
    split=arguments.split,
    checkpoint=arguments.checkpoint,
    root=arguments.root,
    batch_size=arguments.batch_size,
    boundary=arguments.boundary,
    rand=arguments.rand,
    changes=_changes(arguments),
    crf=_crf(arguments),
  )
  title = f"{arguments.run_directory}, step {result.step}, {result.split}"
  CONSOLE.print(result.task.table(result.scores, title))
  for key, what in (("boundary_miou", "mean boundary IoU"), ("rand", "Rand score")):
    if result.extra.get(key) is not None:
      CONSOLE.print(f"{what}: {100 * result.extra[key]:.1f} %")
  if "crf" in result.extra:
    CONSOLE.print(_crf_table(result))
  CONSOLE.print(f"written to {pathlib.Path(arguments.run_directory) / 'evaluation'}")


def _crf_table(result: Evaluation) -> Table:
  """Measures before and after the CRF."""
  before = {**result.task.log_line(result.scores), **result.extra}
  after = result.extra["crf"]
  table = Table("measure", "without CRF", "with CRF", title="dense CRF", title_justify="left")
  for key in ("miou", "pixel_accuracy", "boundary_miou", "rand"):
    if after.get(key) is not None:
      table.add_row(key, f"{100 * before[key]:.1f} %", f"{100 * after[key]:.1f} %")
  return table


def _predict(arguments: argparse.Namespace) -> None:
  config = load_run(arguments.run_directory)[0]
  volumes = models.ndim(config.model.name) == 3
  files = _input_files(arguments.images, data.NIFTI_SUFFIXES if volumes else data.IMAGE_SUFFIXES)
  use_compilation_cache(config)
  segmenter = Segmenter.from_run(
    arguments.run_directory,
    arguments.checkpoint,
    _changes(arguments),
    tile=arguments.tile,
    margin=arguments.margin,
    crf=_crf(arguments),
  )
  if isinstance(segmenter, InstanceSegmenter):
    table = _predict_objects(segmenter, files, arguments.out)
  else:
    table = _predict_masks(segmenter, files, arguments.out)
  CONSOLE.print(table)
  CONSOLE.print(f"written to {arguments.out}")


def _predict_masks(segmenter: Segmenter, files: Sequence[pathlib.Path], out: pathlib.Path) -> Table:
  total = np.zeros(len(segmenter.classes.names))
  for file in progress(files, "predicting", len(files)):
    volume = file.name.lower().endswith(tuple(data.NIFTI_SUFFIXES))
    prediction = segmenter(data.read_volume(file) if volume else data.read_image(file))
    prediction.save(out, _stem(file), like=file)
    total += list(prediction.shares().values())
  table = Table("class", "mean share", title=f"{len(files)} image(s)", title_justify="left")
  for name, share in zip(segmenter.classes.names, total / len(files), strict=True):
    table.add_row(name, f"{100 * share:.1f} %")
  return table


def _predict_objects(
  segmenter: InstanceSegmenter, files: Sequence[pathlib.Path], out: pathlib.Path
) -> Table:
  names, values = segmenter.classes.names, segmenter.classes.values
  total = np.zeros(len(names), np.int64)
  results = []
  for file in progress(files, "predicting", len(files)):
    prediction = segmenter(data.read_image(file))
    prediction.save(out, _stem(file))
    total += np.bincount(prediction.classes, minlength=len(names))
    results += coco_results([(file.name, prediction.objects)], values)
  (out / "detections.json").write_text(json.dumps(results))
  table = Table("class", "objects", title=f"{len(files)} image(s)", title_justify="left")
  for name, count in list(zip(names, total, strict=True))[1:]:
    table.add_row(name, f"{count:,}")
  return table


def _export(arguments: argparse.Namespace) -> None:
  paths = export_run(
    arguments.run_directory,
    arguments.out,
    checkpoint=arguments.checkpoint,
    size=arguments.size,
    platforms=arguments.platforms,
    changes=_changes(arguments),
  )
  megabytes = paths[0].stat().st_size / 2**20
  CONSOLE.print(f"written to {paths[0]} ({megabytes:.1f} MiB); what it takes is in {paths[1].name}")


def _tune_crf(arguments: argparse.Namespace) -> None:
  use_cpu_cores()
  use_compilation_cache(load_run(arguments.run_directory, _changes(arguments))[0])
  text = arguments.crf_params
  result = tune_crf(
    arguments.run_directory,
    split=arguments.split,
    checkpoint=arguments.checkpoint,
    root=arguments.root,
    images=arguments.images,
    ranges=arguments.ranges,
    base=None if text is None else parse_params(text),
    changes=_changes(arguments),
  )
  table = Table(*result.trials[0][0], "mIoU", title="the best of them", title_justify="left")
  for values, miou in result.trials[:10]:
    table.add_row(*(f"{value:g}" for value in values.values()), f"{100 * miou:.2f} %")
  CONSOLE.print(table)
  CONSOLE.print(f"without CRF: {100 * result.without:.2f} %")
  if not result.miou > result.without:
    CONSOLE.print("no setting is better than none: leave --crf out, or widen the search")
  CONSOLE.print(f"written to {pathlib.Path(arguments.run_directory) / 'crf.json'}")


def _import_weights(arguments: argparse.Namespace) -> None:
  changes = _changes(arguments)
  classes = data.ClassInfo.load(arguments.classes) if arguments.classes else None
  loaded = import_run(arguments.source, arguments.out, arguments.model, classes, changes)
  knobs = ", ".join(f"{k}={v}" for k, v in loaded.knobs.items())
  names = load_run(arguments.out)[1].names
  some = ", ".join(names[:3])
  for line in (
    f"{arguments.source}: {loaded.what}",
    f"{loaded.name}({knobs}), {loaded.num_classes} classes ({some}, ...): {loaded.report}",
    f"note: {loaded.note}" if loaded.note else "",
    f"written to {arguments.out}",
  ):
    if line:
      CONSOLE.print(line, highlight=False, markup=False)


def _input_files(paths: Sequence[pathlib.Path], suffixes: Sequence[str]) -> list[pathlib.Path]:
  files: list[pathlib.Path] = []
  for path in paths:
    if path.is_dir():
      found = sorted(p for p in path.iterdir() if p.name.lower().endswith(tuple(suffixes)))
      if not found:
        raise InputError(f"{path} holds no file of {', '.join(sorted(suffixes))}")
      files += found
    elif path.is_file():
      files.append(path)
    else:
      raise InputError(f"there is no file or folder {path}")
  # Outputs are named by the stem, and one must not overwrite another.
  stems: dict[str, pathlib.Path] = {}
  for file in files:
    stem = _stem(file)
    if stem in stems:
      raise InputError(
        f"{stems[stem]} and {file} would be written to the same name, {stem}; "
        "predict them in two calls with two --out folders"
      )
    stems[stem] = file
  return files


def _stem(path: pathlib.Path) -> str:
  return path.name.removesuffix(".gz").rpartition(".")[0] or path.name
