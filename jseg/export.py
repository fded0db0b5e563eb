"""A trained network as one file that needs JAX to run, and nothing of this library."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from jseg import models
from jseg.checkpoint import checkpoint_step, load_model, load_run
from jseg.data import normalize
from jseg.types import InputError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_run(
  run: str | pathlib.Path,
  out: str | pathlib.Path | None = None,
  *,
  checkpoint: str | int = "best",
  size: Sequence[int] | None = None,
  platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
  changes: Mapping[str, Any] | None = None,
) -> list[pathlib.Path]:
  """Writes a run's network as StableHLO, with its weights, for a batch of any size.

  What is written is a function of one argument, `image` uint8 [b h w c] in 0..255 at a fixed height
  and width (volumes: float32 [b d h w c], normalised as in training), that gives `logits` float32
  [b h w k]; normalisation is part of it. `jax.export.deserialize` reads it.

  Args:
    run: the run directory.
    out: file to write; RUN/export/NETWORK.stablehlo if None. Beside it, with the suffix .json,
      lies what a caller must know: shapes, classes, colours, where the network comes from.
    checkpoint: "best", "latest" or a step.
    size: of the images; the run's `data.size` if None.
    platforms: that it is lowered for, from any machine. How convolutions are computed is chosen
      for the machine that exports.
    changes: of the run's configuration (`jseg.config.change`).

  Returns:
    The paths of both files.

  Raises:
    InputError: no such run or checkpoint; the network is of objects; a size or platform can't be;
      or the extra package that writes the file is missing.
  """
  try:
    import flatbuffers  # noqa: F401, what jax.export writes with but doesn't install
  except ImportError:
    raise InputError('exporting needs flatbuffers; pip install "jaxseg[export]"') from None
  if unknown := [p for p in platforms if p not in PLATFORMS] or (not platforms and ["none"]):
    raise InputError(f"platforms: {unknown[0]!r} is unknown; choose from {', '.join(PLATFORMS)}")
  run = pathlib.Path(run)
  config, classes = load_run(run, changes)
  name, channels = config.model.name, config.data.channels
  size = tuple(size or config.data.size)
  if models.task(name) == "instance":
    raise InputError(f"{name} finds objects; only networks with one class a pixel can be exported")
  if len(size) != models.ndim(name) or min(size) < 1:
    raise InputError(f"size: {size} must be {models.ndim(name)} numbers above 0, as data.size is")
  step = checkpoint_step(run, checkpoint)
  model, variables = load_model(run, step, changes)
  volumes = len(size) == 3

  def logits(image: jax.Array) -> jax.Array:
    x = image if volumes else normalize(image)
    outputs: Any = model.apply(variables, x, train=False)
    return outputs.logits

  (batch,) = export.symbolic_shape("b")
  shape = (batch, *size, channels)
  dtype = jnp.float32 if volumes else jnp.uint8
  exported = export.export(jax.jit(logits), platforms=platforms)(jax.ShapeDtypeStruct(shape, dtype))

  out = pathlib.Path(out) if out else run / "export" / f"{name}.stablehlo"
  about = {
    "network": name,
    "input": {"dtype": jnp.dtype(dtype).name, "shape": ["b", *size, channels]},
    "output": {"dtype": "float32", "shape": ["b", *size, len(classes.names)]},
    "classes": list(classes.names),
    "palette": classes.palette.tolist(),
    "step": step,
    "changes": dict(changes or {}),
    "platforms": list(exported.platforms),
    "jax": jax.__version__,
  }
  paths = [out, out.with_suffix(".json")]
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(exported.serialize())
    paths[1].write_text(json.dumps(about, indent=2) + "\n")
  except OSError as error:
    raise InputError(f"{out} can't be written ({error.strerror}); name another --out") from None
  return paths
