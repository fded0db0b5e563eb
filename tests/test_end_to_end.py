"""Train, kill, resume, evaluate, predict: the whole way on generated data."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.tiny import tiny_config
from PIL import Image

import jseg
from jseg import cli
from jseg.evaluation import evaluate
from jseg.images import normalize
from jseg.loop import train
from jseg.run import Run, load_model
from jseg.types import InputError

ROOT = pathlib.Path(__file__).parents[1]
TIMINGS = {"images_per_second", "seconds"}


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


def metrics(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


def parameters(workdir):
  _, variables = load_model(workdir, "latest")
  return jax.device_get(variables)


def assert_same_run(a, b):
  assert metrics(a) == metrics(b)
  jax.tree.map(np.testing.assert_array_equal, parameters(a), parameters(b))


def test_a_run_directory_holds_what_the_readme_says(run):
  lines = metrics(run)
  assert [line["step"] for line in lines if line["split"] == "val"] == [6, 12]
  assert [line["step"] for line in lines if line["split"] == "train"] == [2, 3, 4, 6, 8, 9, 10, 12]
  assert lines[-2]["loss"] < lines[0]["loss"]
  for name in ("config.json", "classes.json", "curves.png", "evaluation/val.json"):
    assert (run / name).is_file(), name
  assert sorted(p.name for p in (run / "samples").iterdir()) == ["0000006.png", "0000012.png"]
  assert any((run / "tensorboard").iterdir())
  assert Run.open(run).restore("latest")[0] == 12


def test_a_finished_run_is_not_trained_again(run, data_dir):
  before = metrics(run), (run / "metrics.jsonl").stat().st_mtime_ns
  scores = train(tiny_config(data_dir), run)
  assert scores.miou == before[0][-1]["miou"]
  assert (metrics(run), (run / "metrics.jsonl").stat().st_mtime_ns) == before


def test_another_configuration_is_refused(run, data_dir):
  with pytest.raises(InputError, match=r"another configuration \(optim.lr: was 0.05, is 0.1\)"):
    train(tiny_config(data_dir, optim__lr=0.1), run)


def test_a_run_is_not_resumed_on_other_data(run, data_dir, monkeypatch):
  config = tiny_config(data_dir)
  changed = dataclasses.replace(jseg.config.load_dataset(config), fingerprint="another")
  monkeypatch.setattr(jseg.config, "load_dataset", lambda _: changed)
  with pytest.raises(InputError, match=r"the data set has changed since the run .* began"):
    train(config, run)


def test_a_batch_must_divide_over_the_devices(tmp_path, data_dir):
  with pytest.raises(InputError, match=r"data.batch_size: 6 must be a multiple of the 4 devices"):
    train(tiny_config(data_dir, data__batch_size=6), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, data_dir):
  config = tiny_config(data_dir, optim__lr=1e30, optim__schedule="constant")
  with pytest.raises(InputError, match=r"the loss became (nan|inf) at step \d+; .*optim.lr"):
    train(config, tmp_path / "run")


def test_evaluation_agrees_with_training_and_over_batch_sizes(run):
  first = evaluate(run, checkpoint="latest")
  assert first.scores.miou == pytest.approx(metrics(run)[-1]["miou"], abs=1e-4)
  for batch_size in (1, 8):
    other = evaluate(run, checkpoint="latest", batch_size=batch_size)
    assert other.scores.miou == pytest.approx(first.scores.miou, abs=1e-4)
    assert other.scores.matrix.sum() == first.scores.matrix.sum()
  saved = json.loads((run / "evaluation" / "val.json").read_text())
  assert saved["step"] == 12
  assert saved["miou"] == pytest.approx(first.scores.miou, abs=1e-4)
  assert set(saved["per_class"]) == {"background", "disc", "rectangle", "triangle", "star"}
  assert (run / "evaluation" / "val_confusion.png").is_file()


@pytest.mark.parametrize("devices", [1, 2])
def test_evaluation_agrees_over_devices(run, devices):
  # The tests run on four simulated devices; other numbers need a process of their own.
  code = (
    "import jax, sys; jax.config.update('jax_num_cpu_devices', int(sys.argv[2]));"
    "import jseg;"
    "print(jseg.evaluate(sys.argv[1], checkpoint='latest').scores.miou)"
  )
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  result = subprocess.run(
    [sys.executable, "-c", code, str(run), str(devices)],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  reference = evaluate(run, checkpoint="latest").scores.miou
  assert float(result.stdout.split()[-1]) == pytest.approx(reference, abs=1e-4)


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
    (["evaluate", "RUN", "--checkpoint", "5"], r"no checkpoint '5'; there is best, latest and"),
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


def start(workdir, data_dir):
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
    [sys.executable, str(ROOT / "tests" / "helpers" / "tiny.py"), str(workdir), str(data_dir)],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(condition, process):
  deadline = time.monotonic() + 120
  while not condition():
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < deadline
    time.sleep(0.002)


def last_step(workdir):
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("\n") else 0


def test_a_killed_run_resumes_bit_for_bit_and_a_terminated_one_saves(tmp_path, data_dir):
  whole = tmp_path / "whole"
  process = start(whole, data_dir)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  assert last_step(whole) == 30

  # SIGKILL at a random step: maybe while a checkpoint is written, but after one was.
  killed = tmp_path / "killed"
  process = start(killed, data_dir)
  target = int(np.random.default_rng().integers(7, 24))
  wait_for(lambda: last_step(killed) >= target, process)
  process.kill()
  process.communicate()
  reached = last_step(killed)
  assert reached < 30
  process = start(killed, data_dir)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  assert "resuming at step" in output, (target, reached)
  assert_same_run(whole, killed)

  # SIGTERM: the step is finished and saved, and the exit is clean.
  stopped = tmp_path / "stopped"
  process = start(stopped, data_dir)
  wait_for(lambda: last_step(stopped) >= 4, process)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=240)
  assert process.returncode == 0, output
  assert "saved at step" in output
  assert Run.open(stopped).restore("latest")[0] == last_step(stopped) < 30
