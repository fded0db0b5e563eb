"""A network as StableHLO gives the same logits where this library isn't, for any batch."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.untrained import make_run

from jseg import models
from jseg.cli import main
from jseg.export import export_run
from jseg.images import normalize
from jseg.run import load_model
from jseg.types import InputError

# Runs with nothing of this library: neither installed nor on the path.
PROGRAM = """
import pathlib, sys
import numpy as np
from jax import export
path, images, out = sys.argv[1:]
function = export.deserialize(pathlib.Path(path).read_bytes())
images = np.load(images)
logits = [np.asarray(function.call(images[:n])) for n in (1, 3)]
assert not any(name.split(".")[0] in ("jseg", "flax") for name in sys.modules)
np.savez(out, *logits)
"""


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
  return make_run(tmp_path_factory.mktemp("v3") / "run", "deeplab_v3")


@pytest.mark.parametrize("model", ["unet", "deeplab_v3", "pspnet"])
def test_it_gives_the_same_logits_without_this_library(model, tmp_path):
  run = make_run(tmp_path / "run", model)
  paths = export_run(run, tmp_path / "net.stablehlo", size=(37, 50))
  images = np.random.default_rng(0).integers(0, 256, (3, 37, 50, 3), np.uint8)
  np.save(tmp_path / "images.npy", images)
  subprocess.run(
    [sys.executable, "-c", PROGRAM, paths[0], tmp_path / "images.npy", tmp_path / "logits.npz"],
    cwd=tmp_path,
    check=True,
    env={"PATH": "", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"]},
  )
  network, variables = load_model(run)
  expected = jax.jit(network.apply)(variables, normalize(images)).logits
  assert np.std(expected) > 0
  with np.load(tmp_path / "logits.npz") as file:
    for logits in file.values():
      atol = 1e-5 * float(abs(expected).max())
      np.testing.assert_allclose(logits, expected[: len(logits)], rtol=0, atol=atol)
  about = json.loads(paths[1].read_text())
  assert about["input"] == {"dtype": "uint8", "shape": ["b", 37, 50, 3]}
  assert about["output"] == {"dtype": "float32", "shape": ["b", 37, 50, 3]}
  assert about["classes"] == ["a", "b", "c"]
  assert about["platforms"] == ["cpu", "cuda", "tpu"]


def test_weights_of_stride_16_are_used_at_stride_8(v3, tmp_path, capsys):
  # The same variables, in a network with another setting: no conversion.
  image = jax.random.normal(jax.random.key(1), (1, 40, 40, 3))
  (coarse, variables), (fine, same) = (
    load_model(v3),
    load_model(v3, changes={"model.output_stride": 8}),
  )
  assert (coarse.output_stride, fine.output_stride) == (16, 8)
  jax.tree.map(np.testing.assert_array_equal, variables, same)
  first, second = (jax.jit(m.apply)(variables, image).logits for m in (coarse, fine))
  built = models.create("deeplab_v3", 3, **{**models.get("deeplab_v3").TINY, "output_stride": 8})
  np.testing.assert_array_equal(second, jax.jit(built.apply)(variables, image).logits)
  assert jnp.abs(first - second).max() > 0.01 * jnp.abs(first).max()
  main(["export", str(v3), "--set", "model.output_stride=8", "--platforms", "cpu"])
  assert "deeplab_v3.stablehlo" in capsys.readouterr().out.replace("\n", "")
  about = json.loads((v3 / "export" / "deeplab_v3.json").read_text())
  assert about["changes"] == {"model.output_stride": 8}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {"model.output_strde": 8},
      r"unknown config key model.output_strde; did you mean model.output",
    ),
    ({"model.output_stride": "x"}, r"model.output_stride: 'x' must be of the kind of its default"),
    ({"model.output_stride": 12}, r"output_stride: 12 must be 8 or 16"),
    ({"model.name": "unet"}, r"unknown config key model.name"),
    ({"model.width": 0.25}, r"is of another network"),
  ],
)
def test_changes_that_cannot_be(v3, changes, message):
  with pytest.raises(InputError, match=message):
    load_model(v3, changes=changes)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"size": (32,)}, r"size: \(32,\) must be 2 numbers above 0"),
    ({"size": (32, 0)}, r"size: \(32, 0\) must be 2 numbers above 0"),
    ({"platforms": ("gpu",)}, r"platforms: 'gpu' is unknown; choose from cpu, cuda, rocm, tpu"),
    ({"checkpoint": 7}, r"has no checkpoint 7; there is best, latest, average:N .*, and 0"),
    ({"out": "/proc/nowhere/net"}, r"/proc/nowhere can't be written .*; name another --out"),
  ],
)
def test_exports_that_cannot_be(v3, options, message):
  with pytest.raises(InputError, match=message):
    export_run(v3, **options)


def test_set_wants_a_key_and_a_value(v3, capsys):
  with pytest.raises(SystemExit, match=r"--set model.output_stride: give KEY=VALUE"):
    main(["evaluate", str(v3), "--set", "model.output_stride"])
