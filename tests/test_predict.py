"""A collection of files is predicted without harm: what fails is named, what is done stays done."""

import errno
import json
import os
import pathlib
import shutil
import tracemalloc

import numpy as np
import pytest
import tifffile
from helpers.untrained import make_run
from PIL import Image

import jseg
from jseg import cli
from jseg.predict import predict_files
from jseg.record import RECORD
from jseg.tasks.semantic.predict import KINDS, SemanticPrediction, SemanticPredictor
from jseg.tasks.semantic.task import SemanticTask
from jseg.types import InputError

NAMES = ("[/b]", "$x_{", "é [red]")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run in a folder, and of classes, that are called like patterns and markup."""
  return make_run(tmp_path_factory.mktemp("runs") / "a [v2]", classes=NAMES)


def photo(path, size=(20, 24), seed=0, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(path, **options)
  return path


def two_frames(path):
  frame = Image.new("RGB", (16, 16), "red")
  frame.save(path, save_all=True, append_images=[Image.new("RGB", (16, 16), "blue")])


def four_bands(path):
  Image.new("RGBX", (8, 8)).save(path)  # the fourth isn't said to be alpha


BAD = {
  "empty.png": lambda p: p.write_bytes(b""),
  "cut.png": lambda p: p.write_bytes(photo(p.with_name(".whole.png")).read_bytes()[:80]),
  "page.jpg": lambda p: p.write_bytes(b"<html>404</html>"),
  "deep.png": lambda p: Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(p),
  "anim.png": two_frames,
  "film.gif": two_frames,
  "clip.webp": two_frames,
  "pages.tif": two_frames,
  "bands.tiff": four_bands,
  "gone[b].jpg": lambda p: p.symlink_to(p.with_name("nowhere")),
}


def collection(root, good=5):
  """A folder of good photos, in sub-folders too, and of one bad file of each kind."""
  for i in range(good):
    photo(root / ("day 1" if i % 2 else "") / f"IMG_{i}.{'png' if i % 3 else 'jpg'}", seed=i)
  for name, make in BAD.items():
    make(root / name)
  return root


def states(folder):
  return {
    p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, p.read_bytes())
    for p in folder.rglob("*")
    if p.is_file() and p.name != RECORD
  }


def test_bad_files_are_named_and_the_rest_goes_on(run, tmp_path, capsys):
  photos, out = collection(tmp_path / "photos"), tmp_path / "out"
  (photos / "IMG_9.HEIC").write_bytes(b"ftypheic")
  (photos / "._IMG_0.jpg").write_bytes(b"\x00\x05\x16\x07")
  command = ["predict", str(run), str(photos), "--out", str(out)]
  with pytest.raises(SystemExit) as info:
    cli.main(command)
  message = str(info.value.code)
  assert message.startswith("error: 10 of 15 file(s) failed; the same command tries them again")
  for name in BAD:
    assert name in message
  for reason in ("empty", "16 bits", "holds 2 frames", "holds 2 pages", "has 4 bands", "a link to"):
    assert reason in message, reason
  shown = capsys.readouterr().out
  assert "5 predicted, 10 failed" in shown
  assert "1 file(s) (IMG_9.HEIC) end in .heic, which isn't read here: not used" in shown
  for name in NAMES:
    assert name in shown
  before = states(out)
  assert len(before) == 15
  assert {"IMG_0.png", "day 1/IMG_1_overlay.png", "day 1/IMG_3_legend.png"} <= before.keys()

  # A second call only tries what failed.
  with pytest.raises(SystemExit, match="10 of 15"):
    cli.main(command)
  assert "0 predicted, 5 skipped because they were done, 10 failed" in capsys.readouterr().out
  assert states(out) == before

  # When they are mended, and one is lost and one is another photo, these are all that is done.
  for name in BAD:
    (photos / name).unlink()
  photo(photos / "cut.png")
  (out / "day 1" / "IMG_1_legend.png").unlink()
  photo(photos / "IMG_2.png", seed=77)
  cli.main(command)
  assert "3 predicted, 3 skipped because they were done, 0 failed" in capsys.readouterr().out
  after = states(out)
  assert after.keys() == before.keys() | {f"cut{end}.png" for end in ("", "_overlay", "_legend")}
  changed = {name.split("_legend")[0] for name in before if before[name] != after[name]}
  assert {name.removesuffix(".png").removesuffix("_overlay") for name in changed} == {
    "IMG_2",
    "day 1/IMG_1",
  }
  assert sum(p.name.startswith(".") for p in out.iterdir()) == 0


def test_other_settings_are_refused_or_all_is_done_again(run, tmp_path):
  photo(tmp_path / "a.png", (40, 40))
  photo(tmp_path / "b.png", (40, 40))
  paths, out = [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out"
  predict_files(run, paths, out)
  before = states(out)
  with pytest.raises(
    InputError, match=r"other settings \(protocol: was None, is tile.*--overwrite"
  ):
    predict_files(run, paths, out, protocol="tile")
  other = make_run(tmp_path / "other", classes=NAMES, widths=(2, 4, 4))
  with pytest.raises(InputError, match=r"results of other settings \(weights: was"):
    predict_files(other, paths, out)
  assert states(out) == before
  with pytest.raises(InputError, match=r"also of 1 file\(s\) that aren't given now, such as b"):
    predict_files(run, paths[:1], out, protocol="tile", overwrite=True)
  result = predict_files(run, paths, out, protocol="tile", overwrite=True)
  assert (result.done, result.before) == (["a", "b"], [])
  assert predict_files(run, paths, out, protocol="tile").before == ["a", "b"]


@pytest.mark.parametrize("out", ["photos", "link", "masks"])
def test_photos_and_masks_of_ones_own_are_not_overwritten(run, tmp_path, out, monkeypatch):
  photo(tmp_path / "photos" / "a.png")
  photo(tmp_path / "masks" / "a.png", seed=1)
  (tmp_path / "link").symlink_to(tmp_path / "photos")
  before = states(tmp_path)
  monkeypatch.setattr(SemanticPredictor, "__call__", lambda *_: pytest.fail("work has begun"))
  with pytest.raises(InputError, match=r"a.png is (an input|there already)"):
    predict_files(run, [tmp_path / "photos"], tmp_path / out)
  assert states(tmp_path) == before


def test_a_full_disk_stops_and_the_next_call_goes_on(run, tmp_path, monkeypatch):
  for i in range(4):
    photo(tmp_path / "in" / f"{i}.png", seed=i)
  save = SemanticPrediction.save

  def fill(self, out, stem, like=None, **options):
    paths = save(self, out, stem, like, **options)
    if stem == "2":
      paths[1].write_bytes(b"half")
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return paths

  monkeypatch.setattr(SemanticPrediction, "save", fill)
  with pytest.raises(InputError, match=r"out can't be written \(No space.*goes on from there"):
    predict_files(run, [tmp_path / "in"], tmp_path / "out")
  assert not (tmp_path / "out" / "2_overlay.png").exists()
  monkeypatch.undo()
  result = predict_files(run, [tmp_path / "in"], tmp_path / "out")
  assert (result.before, result.done) == (["0", "1"], ["2", "3"])


def test_killed_between_two_files_of_one_photo(run, tmp_path, monkeypatch):
  for name in ("a", "b"):
    photo(tmp_path / "in" / f"{name}.png")

  class Killed(BaseException):
    pass

  replace = pathlib.Path.replace

  def kill(self, target):
    if pathlib.Path(target).name == "b_overlay.png":
      raise Killed
    return replace(self, target)

  monkeypatch.setattr(pathlib.Path, "replace", kill)
  with pytest.raises(Killed):
    predict_files(run, [tmp_path / "in"], tmp_path / "out")
  monkeypatch.undo()
  assert (tmp_path / "out" / "b.png").exists()
  result = predict_files(run, [tmp_path / "in"], tmp_path / "out")
  assert (result.before, result.done) == (["a"], ["b"])


def test_not_enough_memory_for_one_is_its_own_failure(run, tmp_path, monkeypatch):
  photo(tmp_path / "in" / "a.png")
  photo(tmp_path / "in" / "huge.png", (30, 30))
  show = SemanticPredictor._as_shown

  def fail(self, image):
    if image.shape[0] == 30:
      raise MemoryError
    return show(self, image)

  monkeypatch.setattr(SemanticPredictor, "_as_shown", fail)
  result = predict_files(run, [tmp_path / "in"], tmp_path / "out")
  assert result.done == ["a"]
  assert "huge.png: there is not enough memory for it" in result.failed["huge"]


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"inference.scales": (1.0, 0.5), "inference.flip": "horizontal"},
    {"inference.mode": "window", "data.eval_batch_size": 5},
    {"inference.mode": "window", "inference.scales": (1.0, 1.5)},
  ],
  ids=["once", "averaged", "windows", "windows, averaged"],
)
def test_a_batch_is_what_each_of_its_images_is(run, changes):
  segmenter = jseg.Segmenter.from_run(run, changes=changes)
  rng = np.random.default_rng(0)
  sizes = [(64, 64), (20, 24), (150, 90), (64, 30), (9, 70)]
  images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
  for image, make in zip(images, segmenter.batch(images, 6), strict=True):
    alone = segmenter(image).mask
    np.testing.assert_array_equal(make().mask, alone)
  assert len(np.unique(alone)) > 1


def test_windows_of_several_images_share_batches(run, monkeypatch):
  changes = {"inference.mode": "window", "data.eval_batch_size": 8}
  segmenter = jseg.Segmenter.from_run(run, changes=changes)
  images = [np.full((20, 24, 3), i, np.uint8) for i in range(segmenter.together)]
  scores, shown = segmenter._predict._scores, []

  def spy(average, variables, image, size):
    shown.append(np.asarray(image)[:, 0, 0, 0].tolist())
    return scores(average, variables, image, size)

  monkeypatch.setattr(segmenter._predict, "_scores", spy)
  segmenter.batch(images)
  assert shown == [list(range(8))]


def test_the_limit_of_pixels_is_a_setting(run, tmp_path):
  path = photo(tmp_path / "a.png", (30, 40))
  changes = {"data.max_pixels": 1199}
  result = predict_files(run, [path], tmp_path / "out", changes=changes)
  assert "1,200 pixels, and the limit is 1,199" in result.failed["a"]
  assert "raise data.max_pixels" in result.failed["a"]
  changes = {"data.max_pixels": 1200}
  assert predict_files(run, [path], tmp_path / "out", changes=changes).done == ["a"]


@pytest.mark.parametrize(
  ("image", "match"),
  [
    (np.zeros((8, 8, 3), np.float32), r"float32 is none; give uint8.*\(255 \* image\).round\(\)"),
    (np.zeros((8, 8, 3), np.uint16), r"uint16 is none; give uint8.*0..255"),
    (np.zeros((8, 8), bool), r"bool is none; give uint8"),
    (
      np.zeros((8, 8, 2), np.uint8),
      r"shape \(8, 8, 2\) and type uint8 is none; give uint8",
    ),
    (Image.new("P", (8, 8)), r"a Image is no image; give an array, uint8 \[h w 3\]"),
    ("photo.jpg", r"a str is no image; give an array.*read_image"),
    (np.zeros((2, 8, 8, 3), np.uint8), r"takes images, not an array of shape \(2, 8, 8, 3\)"),
  ],
)
def test_what_is_no_image(run, image, match):
  segmenter = jseg.Segmenter.from_run(run)
  with pytest.raises(InputError, match=match):
    segmenter(image)


def test_tiles_are_computed_again_for_probabilities_and_agree(run):
  image = np.random.default_rng(0).integers(0, 256, (70, 45, 3), np.uint8)
  prediction = jseg.Segmenter.from_run(run, protocol="tile")(image)
  np.testing.assert_array_equal(prediction.probabilities.argmax(-1), prediction.mask)
  np.testing.assert_allclose(prediction.probabilities.sum(-1), 1, rtol=1e-5)
  shares = np.bincount(prediction.mask.ravel(), minlength=3) / prediction.mask.size
  assert list(prediction.shares().values()) == pytest.approx(shares.tolist())


def test_a_large_image_costs_little_beside_itself(run, tmp_path):
  segmenter = jseg.Segmenter.from_run(run)
  image = np.zeros((1536, 2048, 3), np.uint8)
  segmenter(image)  # compiles
  tracemalloc.start()
  prediction = segmenter(image)
  prediction.save(tmp_path, "a")
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  # The overlay, and a few arrays of float64 for a strip of 2^18 pixels; of the whole image one such
  # array alone would be 8 times the image. What Pillow and the network hold isn't counted here.
  assert peak < image.nbytes + 4 * 2**18 * 3 * 8


def test_a_moved_run_and_a_moved_folder_of_results_are_known(run, tmp_path):
  photo(tmp_path / "a.png")
  shutil.copytree(run, tmp_path / "copy")
  predict_files(run, [tmp_path / "a.png"], tmp_path / "out")
  (tmp_path / "out").rename(tmp_path / "moved")
  result = predict_files(tmp_path / "copy", [tmp_path / "a.png"], tmp_path / "moved")
  assert result.before == ["a"]
  head = json.loads((tmp_path / "moved" / RECORD).read_text().splitlines()[0])
  assert head["settings"]["run"] == str(tmp_path / "copy")


@pytest.mark.parametrize("command", ["evaluate", "tune-crf", "export"])
def test_where_results_go_is_tried_before_they_are_computed(run, tmp_path, monkeypatch, command):
  blocked = tmp_path / "run"
  shutil.copytree(run, blocked)
  for name in ("evaluation", "export"):
    (blocked / name).write_text("a file")
  (blocked / "crf.json").mkdir()
  monkeypatch.setattr("jseg.run.Run.restore", lambda *_: pytest.fail("work has begun"))
  monkeypatch.setattr("jseg.run.Run.dataset", lambda *_: None)
  with pytest.raises(SystemExit, match=r"can't be written.*(a copy of the run|another --out)"):
    cli.main([command, str(blocked)])
  if command == "export":
    with pytest.raises(SystemExit, match=r"net.json: the description .* name another --out"):
      cli.main([command, str(blocked), "--out", str(tmp_path / "net.json")])


def test_names_are_composed_whatever_the_disk_says(run, tmp_path, monkeypatch):
  photo(tmp_path / "in" / "sub" / "u\u0308.png")
  reported, result = [], SemanticTask.result

  def listen(self, prediction, file):
    reported.append(file)
    return result(self, prediction, file)

  monkeypatch.setattr(SemanticTask, "result", listen)
  assert predict_files(run, [tmp_path / "in"], tmp_path / "out").done == ["sub/\u00fc"]
  assert reported == ["sub/\u00fc.png"]
  assert (tmp_path / "out" / "sub" / "\u00fc_overlay.png").is_file()


NASTY = "\x1b[2J\x1b]0;title\x07\r\x9b2J\u202e[/b]:car:"
"""Clears a terminal, names it, goes back in the line, turns the writing, and closes markup."""


def harmful(text):
  """Characters that no text for a terminal may have."""
  return {c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160} | (
    {"\u202e"} & set(text)
  )


def test_names_command_no_terminal(tmp_path, capsys, monkeypatch):
  """Names of classes and of files, in results, in the check and in messages."""
  monkeypatch.chdir(tmp_path)
  nasty = make_run(tmp_path / "run", classes=(f"a{NASTY}", "b\nerror: all is lost", f"c{NASTY}"))
  photo(tmp_path / "in" / f"{NASTY.replace('/', '')}.png")
  (tmp_path / "in" / f"bad\n{NASTY.replace('/', '')}.png").write_bytes(b"\x1b[31mred")
  with pytest.raises(SystemExit) as info:
    cli.main(["predict", str(nasty), str(tmp_path / "in"), "--out", str(tmp_path / "out")])
  message = str(info.value.code)
  assert "1 of 2 file(s) failed" in message
  assert len(message.splitlines()) == 2
  shown = capsys.readouterr()
  assert harmful(message + shown.out + shown.err) == set()
  assert "a\\x1b[2J\\x1b]0;title\\x07\\x0d\\x9b2J\\u202e[/b]:car:" in shown.out
  shutil.move(tmp_path / "in", tmp_path / "set" / "train" / "images")
  (tmp_path / "set" / "train" / "masks").mkdir()
  (tmp_path / "set" / "classes.json").write_text(json.dumps({"classes": [f"a{NASTY}", "b"]}))
  with pytest.raises(SystemExit) as info:
    cli.main(["check-data", str(tmp_path / "set")])
  shown = capsys.readouterr()
  assert harmful(str(info.value.code) + shown.out + shown.err) == set()
  assert "has no mask of the same name" in " ".join(shown.out.split())


def test_a_message_commands_no_terminal_in_python_either(tmp_path):
  name = f"{NASTY.replace('/', '')}.png"
  (tmp_path / name).write_bytes(b"\x1b[31mred")
  with pytest.raises(InputError) as info:
    jseg.data.read_image(tmp_path / name)
  assert harmful(str(info.value)) == set()
  assert "\\x1b[2J" in str(info.value)


def test_an_image_is_decoded_and_its_classes_are_counted_once(run, tmp_path, monkeypatch):
  photo(tmp_path / "a.png")
  count, counted = np.bincount, []

  def listen(numbers, **options):
    counted.append(len(numbers))
    return count(numbers, **options)

  monkeypatch.setattr("jseg.tasks.semantic.predict.np.bincount", listen)
  monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("Pillow has decoded it"))
  assert predict_files(run, [tmp_path / "a.png"], tmp_path / "out").done == ["a"]
  assert counted == [20 * 24]


def test_what_is_written_is_chosen_and_masks_hold_the_values_of_the_data_set(run, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(run, folder)
  about = json.loads((folder / "classes.json").read_text())
  photo(tmp_path / "a.png", (40, 50))
  plain = predict_files(folder, [tmp_path / "a.png"], tmp_path / "plain").done
  assert plain == ["a"]
  with Image.open(tmp_path / "plain" / "a.png") as picture:
    mask = np.asarray(picture)
  for values in ((7, 33, 11), (7, 33, 1100)):
    (folder / "classes.json").write_text(json.dumps({**about, "mask_values": values}))
    out = tmp_path / str(values[-1])
    command = ["predict", str(folder), str(tmp_path / "a.png"), "--out", str(out), "--source-ids"]
    cli.main([*command, "--write", "mask", "confidence"])
    assert {p.name for p in out.iterdir()} == {"a.png", "a_confidence.png", RECORD}
    with Image.open(out / "a.png") as picture:
      np.testing.assert_array_equal(np.asarray(picture), np.array(values)[mask])
  segmenter = jseg.Segmenter.from_run(folder)
  with Image.open(tmp_path / "a.png") as picture:
    sure = segmenter(np.asarray(picture)).probabilities.max(-1)
  with Image.open(out / "a_confidence.png") as picture:
    np.testing.assert_allclose(np.asarray(picture), 255 * sure, atol=0.51)
  with pytest.raises(InputError, match="'masks' is unknown; choose from mask, overlay, legend"):
    predict_files(folder, [tmp_path / "a.png"], out, write=["masks"])
  with pytest.raises(InputError, match="names one twice"):
    predict_files(folder, [tmp_path / "a.png"], out, write=["mask", "mask"])
  with pytest.raises(InputError, match=r"other settings .*source_ids"):
    predict_files(folder, [tmp_path / "a.png"], out, write=["mask", "confidence"])


@pytest.mark.parametrize(("protocol", "scales"), [("window", (0.7, 1.0)), ("tile", (1.0,))])
def test_a_large_tiff_is_read_by_rows_and_gives_the_same_files(
  run, tmp_path, monkeypatch, protocol, scales
):
  pixels = np.random.default_rng(0).integers(0, 256, (75, 60, 3), np.uint8)
  tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(32, 16))
  changes = {"inference.margin": 0, "inference.scales": scales, "data.eval_batch_size": 8}
  options = {"protocol": protocol, "changes": changes, "write": tuple(KINDS)}
  assert predict_files(run, [tmp_path / "a.tif"], tmp_path / "whole", **options).done == ["a"]
  monkeypatch.setattr("jseg.data.files.stored.LARGE", 0)
  monkeypatch.setattr("jseg.data.files.stored._LEAST_BYTES", 1)
  for name in ("images.read_image", "stored.read_image", "stored.StoredImage.__array__"):
    monkeypatch.setattr(f"jseg.data.files.{name}", lambda *_: pytest.fail("it was read whole"))
  assert predict_files(run, [tmp_path / "a.tif"], tmp_path / "rows", **options).done == ["a"]
  found, expected = (
    {name: content for name, (_, content) in states(tmp_path / folder).items()}
    for folder in ("rows", "whole")
  )
  assert sorted(found) == ["a.png", "a_confidence.png", "a_legend.png", "a_overlay.png"]
  assert found == expected


@pytest.mark.parametrize(
  "changes", [{}, {"inference.mode": "window", "inference.output_size": "9x9"}]
)
def test_where_all_of_a_large_tiff_is_needed_it_is_read_whole(run, tmp_path, monkeypatch, changes):
  tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 40, 3), np.uint8), photometric="rgb")
  monkeypatch.setattr("jseg.data.files.stored.LARGE", 0)
  segmenter = jseg.Segmenter.from_run(run, changes=changes)
  assert isinstance(segmenter.task.read(tmp_path / "a.tif"), np.ndarray)


@pytest.mark.parametrize("what", ["crf", "output_size"])
def test_scores_that_must_be_whole_and_do_not_fit_are_refused_before_any_work(
  run, tmp_path, monkeypatch, what
):
  photo(tmp_path / "a.png", (40, 40))
  values = {"crf": True, "output_size": "9x9"}
  changes = {"inference.mode": "window", f"inference.{what}": values[what]}
  monkeypatch.setattr(SemanticPredictor, "_scored", lambda *_: pytest.fail("it began"))
  for short in (0, 1):  # in bytes: scores take 4 of a pixel and class
    there = 2 * 4 * 40 * 40 * len(NAMES) - short
    monkeypatch.setattr("jseg.tasks.semantic.predict.total_memory", lambda there=there: there)
    if short:
      failed = predict_files(run, [tmp_path], tmp_path / "out", changes=changes).failed
      assert f"{what}: the scores of 40 x 40 pixels and 3 classes" in failed["a"]
      assert f"leave {what} out, or cut the image" in failed["a"]
    else:
      with pytest.raises(pytest.fail.Exception, match="it began"):
        predict_files(run, [tmp_path], tmp_path / "out", changes=changes)
