"""Train, kill, resume, evaluate, predict: the whole way on generated data."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.chaos import Writes
from helpers.tiny import logged, tiny_config
from PIL import Image

import jseg
from jseg import cli, step
from jseg.evaluation import evaluate
from jseg.images import normalize
from jseg.loop import train
from jseg.models import Network
from jseg.nn import Conv
from jseg.run import Run, held, load_model
from jseg.types import InputError, Outputs

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
  """A finished run; tests must not change it but for its evaluation folder."""
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  scores = train(tiny_config(data_dir), workdir)
  assert scores is not None
  return workdir


def parameters(workdir):
  _, variables = load_model(workdir, "latest")
  return jax.device_get(variables)


def assert_same_run(a, b):
  assert logged(a) == logged(b)
  jax.tree.map(np.testing.assert_array_equal, parameters(a), parameters(b))


def test_a_run_directory_holds_what_the_readme_says(run):
  lines = logged(run)
  assert [line["step"] for line in lines if line["split"] == "val"] == [6, 12]
  assert [line["step"] for line in lines if line["split"] == "train"] == [2, 3, 4, 6, 8, 9, 10, 12]
  assert lines[-2]["loss"] < lines[0]["loss"]
  for name in ("config.json", "classes.json", "curves.png", "evaluation/val.json"):
    assert (run / name).is_file(), name
  assert sorted(p.name for p in (run / "samples").iterdir()) == ["0000006.png", "0000012.png"]
  assert any((run / "tensorboard").iterdir())
  assert Run.open(run).restore("latest")[0] == 12


def test_a_finished_run_is_not_trained_again(run, data_dir):
  before = logged(run), (run / "metrics.jsonl").stat().st_mtime_ns
  scores = train(tiny_config(data_dir), run)
  assert scores.miou == before[0][-1]["miou"]
  assert (logged(run), (run / "metrics.jsonl").stat().st_mtime_ns) == before


def test_another_configuration_is_refused(run, data_dir):
  with pytest.raises(InputError, match=r"another configuration \(optim.lr: was 0.05, is 0.1\)"):
    train(tiny_config(data_dir, optim__lr=0.1), run)


def test_a_run_is_not_resumed_on_other_data(run, data_dir, monkeypatch):
  config = tiny_config(data_dir)
  changed = dataclasses.replace(jseg.config.load_dataset(config), fingerprint="another")
  monkeypatch.setattr(jseg.config, "load_dataset", lambda *_: changed)
  with pytest.raises(InputError, match=r"the data set has changed since the run .* began"):
    train(config, run)


def test_a_batch_must_divide_over_the_devices(tmp_path, data_dir):
  with pytest.raises(InputError, match=r"data.batch_size: 6 must be a multiple of the 4 devices"):
    train(tiny_config(data_dir, data__batch_size=6), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, data_dir):
  config = tiny_config(data_dir, optim__lr=1e30, optim__schedule="constant")
  with pytest.raises(
    InputError, match=r"the loss became (nan|inf) at step \d+; .*optim.lr"
  ) as told:
    train(config, tmp_path / "run")
  (saved,) = (tmp_path / "run" / "not_finite").glob("*.npz")
  with np.load(saved) as batch:
    assert int(batch["step"]) == int(re.search(r"at step (\d+)", str(told.value))[1])
    assert f"batch is {', '.join(batch['name'])}. It is saved" in str(told.value)
    # They are those that the pipeline read: the step's batch, file by file.
    source = jseg.config.load_dataset(config).source("train")
    examples = {example["name"]: example for example in map(source.__getitem__, range(24))}
    for name, image in zip(batch["name"], batch["image"], strict=True):
      np.testing.assert_array_equal(image, examples[str(name)]["image"])
  assert saved.with_suffix(".png").is_file()


def test_evaluation_agrees_with_training_and_over_batch_sizes(run):
  first = evaluate(run, checkpoint="latest")
  assert first.scores.miou == pytest.approx(logged(run)[-1]["miou"], abs=1e-4)
  for batch_size in (1, 8):
    other = evaluate(run, checkpoint="latest", batch_size=batch_size)
    assert other.scores.miou == pytest.approx(first.scores.miou, abs=1e-4)
    assert other.scores.matrix.sum() == first.scores.matrix.sum()
  saved = json.loads((run / "evaluation" / "val.json").read_text())
  assert saved["step"] == 12
  assert saved["miou"] == pytest.approx(first.scores.miou, abs=1e-4)
  assert set(saved["per_class"]) == {"background", "disc", "rectangle", "triangle", "star"}
  assert (run / "evaluation" / "val_confusion.png").is_file()


def test_a_run_that_is_read_only_is_evaluated(run, monkeypatch, capsys):
  def refuse(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  # For root no folder is read-only: what is simulated is the answer of the system.
  monkeypatch.setattr("tempfile.TemporaryFile", refuse)
  before = [(path, path.stat().st_mtime_ns) for path in run.rglob("*")]
  result = evaluate(run, checkpoint="latest")
  assert result.scores.miou == pytest.approx(logged(run)[-1]["miou"], abs=1e-4)
  assert not result.written
  assert "not written: " in capsys.readouterr().err
  assert before == [(path, path.stat().st_mtime_ns) for path in run.rglob("*")]


@pytest.mark.parametrize("devices", [1, 2])
def test_evaluation_agrees_over_devices(run, devices, monkeypatch):
  reference = evaluate(run, checkpoint="latest").scores
  # The tests run on four simulated devices, of which some are hidden.
  monkeypatch.setattr(jax, "local_device_count", lambda: devices)
  monkeypatch.setattr(jax, "device_count", lambda: devices)
  monkeypatch.setattr(step, "_devices", lambda: jax.devices()[:devices])
  scores = evaluate(run, checkpoint="latest").scores
  assert scores.miou == pytest.approx(reference.miou, abs=1e-4)
  assert scores.matrix.sum() == reference.matrix.sum()


def test_prediction_by_command_line_and_python_agree(run, tmp_path, capsys):
  rng = np.random.default_rng(0)
  pictures = {
    "color": rng.integers(0, 256, (40, 56, 3), np.uint8),
    "gray": rng.integers(0, 256, (20, 24), np.uint8),
    "rgba": rng.integers(0, 256, (32, 32, 4), np.uint8),
  }
  for name, pixels in pictures.items():
    Image.fromarray(pixels).save(tmp_path / f"{name}.png")
  cli.main(["predict", str(run), str(tmp_path), "--out", str(tmp_path / "out")])
  assert "3 image(s)" in capsys.readouterr().out
  segmenter = jseg.Segmenter.from_run(run)
  for name, pixels in pictures.items():
    prediction = segmenter(pixels)
    with Image.open(tmp_path / "out" / f"{name}.png") as written:
      assert written.mode == "P"
      np.testing.assert_array_equal(np.asarray(written), prediction.mask)
    assert prediction.mask.shape == pixels.shape[:2]
    assert sum(prediction.shares().values()) == pytest.approx(1.0)
    np.testing.assert_allclose(prediction.probabilities.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(prediction.probabilities.argmax(-1), prediction.mask)
    assert prediction.overlay().shape == (*pixels.shape[:2], 3)
    assert (tmp_path / "out" / f"{name}_overlay.png").is_file()
    assert (tmp_path / "out" / f"{name}_legend.png").is_file()


def test_the_loaded_model_gives_what_the_segmenter_gives(run):
  model, variables = load_model(run)
  image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  logits = model.apply(variables, normalize(image)[None]).logits[0]
  np.testing.assert_array_equal(
    np.asarray(logits).argmax(-1), jseg.Segmenter.from_run(run)(image).mask
  )


@pytest.mark.parametrize(
  ("arguments", "match"),
  [
    (["evaluate", "RUN", "--split", "dev"], r"no split 'dev'; it has train, val, test"),
    (
      ["evaluate", "RUN", "--checkpoint", "5"],
      r"no checkpoint '5'; there is best, latest, average:N",
    ),
    (["evaluate", "NOWHERE"], r"there is no run directory"),
    (["predict", "RUN", "NOWHERE", "--out", "OUT"], r"there is no file or folder"),
    (["predict", "RUN", "EMPTY", "--out", "OUT"], r"holds no file of .*.bmp"),
    (["predict", "RUN", "BROKEN", "--out", "OUT"], r"broken.png.*(damaged|no image)"),
    (["check-data", "NOWHERE"], r"nowhere"),
  ],
)
def test_mistakes_on_the_command_line(run, tmp_path, arguments, match, capsys):
  (tmp_path / "empty").mkdir()
  (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
  places = {
    "RUN": run,
    "NOWHERE": tmp_path / "nowhere",
    "EMPTY": tmp_path / "empty",
    "BROKEN": tmp_path / "broken.png",
    "OUT": tmp_path / "out",
  }
  with pytest.raises(SystemExit, match=match) as exit_info:
    cli.main([str(places.get(word, word)) for word in arguments])
  assert str(exit_info.value.code).startswith("error: ")


def chaos(workdir, data_dir, what, number):
  """Trains in a process to which something happens at a write; returns (exit status, output)."""
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    "JAX_NUM_CPU_DEVICES": str(jax.local_device_count()),
  }
  program = str(ROOT / "tests" / "helpers" / "chaos.py")
  done = subprocess.run(
    [sys.executable, program, str(workdir), str(data_dir), "12", what, str(number)],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  return done.returncode, done.stdout


def test_a_run_that_was_killed_at_any_write_resumes_bit_for_bit(run, tmp_path, data_dir):
  number = int(np.random.default_rng().integers(1, 120))  # of about 180
  killed = tmp_path / "killed"
  status, output = chaos(killed, data_dir, "kill", number)
  assert status == -signal.SIGKILL, (number, output)
  assert train(tiny_config(data_dir), killed) is not None, number
  assert_same_run(run, killed)
  names = [path.name for path in killed.rglob("*")]
  assert not [name for name in names if name == "lock" or "tmp" in name], number


def test_sigterm_saves_and_returns(tmp_path, data_dir, capsys):
  stopped = tmp_path / "stopped"

  def on_log(step, metrics):
    if step == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  assert train(tiny_config(data_dir), stopped, on_log=on_log) is None
  assert "saved at step 5" in capsys.readouterr().out
  assert Run.open(stopped).restore("latest")[0] == logged(stopped)[-1]["step"] == 5


def changes(workdir):
  """When each file of a run was written, but for evaluations."""
  files = (path for path in workdir.rglob("*") if path.is_file())
  return {str(p): p.stat().st_mtime_ns for p in files if p.parent.name != "evaluation"}


def test_the_second_training_in_a_folder_is_refused(run, data_dir):
  before = changes(run)
  with held(run), pytest.raises(InputError, match=r"tiny is in use by process \d+ on .* since"):
    train(tiny_config(data_dir), run)
  assert evaluate(run).step in (6, 12)  # reading goes on
  assert before == changes(run)


class OneLayer(Network):
  """A single convolution, which is compiled at once: the files are those of any network."""

  @nn.compact
  def __call__(self, image, *, train=False):
    return Outputs(self.typed(Conv)(self.num_classes, (3, 3))(image))


def full(workdir, number):
  """Lets every write below a folder fail, from a number of writes on, until it is undone."""
  return contextlib.closing(Writes(workdir, "full", number))


@pytest.mark.parametrize("number", [2, 5, 8, 12, 14, 17, 18, 30])
def test_a_full_disk_is_told_at_any_write(tmp_path, data_dir, number):
  workdir, config = tmp_path / "full", tiny_config(data_dir, f"{__name__}:OneLayer")
  with full(workdir, number), pytest.raises(InputError, match=r"(No space left|disk is full)"):
    train(config, workdir)
