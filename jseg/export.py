"""A trained network as one file that needs JAX to run, and nothing of this library."""

import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import export

from jseg import hosts, json_files, remote
from jseg.install import install_line
from jseg.outputs import try_file, write_bytes
from jseg.run import Run
from jseg.types import InputError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_run(
  run: str | pathlib.Path,
  out: str | pathlib.Path | None = None,
  *,
  checkpoint: str | int = "best",
  size: Sequence[int] | None = None,
  platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
  changes: Mapping[str, object] | None = None,
) -> list[pathlib.Path]:
  """Writes a run's network as StableHLO, with its weights, for a batch of any size.

  What is written is a function of one argument, `image` uint8 [b h w c] in 0..255 at a fixed height
  and width (volumes: float32 [b d h w c], normalized as in training; scientific images: float32
  [b h w c], as they are stored), that gives `logits` float32 [b h w k]; normalization is part of
  it. `jax.export.deserialize` reads it.

  Args:
    run: the run directory.
    out: file to write; RUN/export/NETWORK.stablehlo if None. Beside it, with the suffix .json,
      lies what a caller must know: shapes, classes, colors, where the network comes from.
    checkpoint: "best", "latest", a step, or "average:N" of the last N (`Run.restore`).
    size: height and width of the images; the run's `data.size` if None.
    platforms: platforms that it is lowered for, from any machine.
    changes: configuration values by dotted key that are to differ (`jseg.config.change`).

  Returns:
    The paths of both files.

  Raises:
    InputError: no such run or checkpoint; the network is of objects; a size or platform can't be;
      there are several processes; or the extra package that writes the file is missing.
  """
  hosts.refuse("exporting")
  try:
    import flatbuffers  # noqa: F401, what jax.export writes with but doesn't install
  except ImportError:
    raise InputError(f"exporting needs flatbuffers: {install_line('export')}") from None
  if unknown := [p for p in platforms if p not in PLATFORMS] or (not platforms and ["none"]):
    raise InputError(f"platforms: {unknown[0]!r} is unknown; choose from {', '.join(PLATFORMS)}")
  opened = Run.open(run, changes)
  config = opened.config
  size = tuple(size or config.data.size)
  serving = opened.task.serving()
  if len(size) != len(config.data.size) or min(size) < 1:
    raise InputError(
      f"size: {size} must be {len(config.data.size)} numbers above 0, as data.size is"
    )
  paths = _paths(pathlib.Path(out or opened.files.export(config.model.name)))
  step, variables = opened.restore(checkpoint)

  (batch,) = export.symbolic_shape("b")
  image = jax.ShapeDtypeStruct((batch, *size, serving.channels), jnp.dtype(serving.dtype))
  function = functools.partial(serving.function, variables)
  exported = export.export(jax.jit(function), platforms=platforms)(image)

  classes = opened.classes
  about = {
    "network": config.model.name,
    "input": {"dtype": serving.dtype, "shape": ["b", *size, serving.channels]},
    "output": {"dtype": "float32", "shape": ["b", *size, len(classes.names)]},
    "classes": list(classes.names),
    "palette": classes.palette.tolist(),
    "step": step,
    "changes": dict(changes or {}),
    "platforms": list(exported.platforms),
    "jax": jax.__version__,
  }
  write_bytes(paths[0], exported.serialize())
  json_files.write(paths[1], about)
  remote.keep(opened.path)
  return paths


def _paths(out: pathlib.Path) -> list[pathlib.Path]:
  """The paths of the network and of its description. Raises InputError if one can't be written."""
  paths = [out, out.with_suffix(".json")]
  if out == paths[1]:
    raise InputError(f"{out}: the description beside the network is called so; name another --out")
  for path in paths:
    try_file(path, "name another --out")
  return paths
