"""Class descriptions: the VOC colors, lookups, and messages for what people get wrong."""

import json

import numpy as np
import pytest

from jseg.data import ClassInfo, voc_colormap
from jseg.types import IGNORE, InputError


def write(tmp_path, content):
  path = tmp_path / "classes.json"
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def test_voc_colormap_is_that_of_the_development_kit():
  colors = voc_colormap()
  assert colors[[0, 1, 2, 3, 20, 255]].tolist() == [
    [0, 0, 0],
    [128, 0, 0],
    [0, 128, 0],
    [128, 128, 0],
    [0, 64, 128],
    [224, 224, 192],
  ]
  assert len(np.unique(colors, axis=0)) == 256


def test_table_without_mask_values():
  table = ClassInfo(("a", "b", "c"), ignore_label=7).table()
  assert table[[0, 1, 2, 3, 7, 255, 65535]].tolist() == [0, 1, 2, -1, IGNORE, -1, -1]


def test_table_with_mask_values():
  table = ClassInfo(("a", "b"), mask_values=(0, 255), ignore_label=None).table()
  assert table[[0, 1, 254, 255]].tolist() == [0, -1, -1, 1]


def test_table_of_instances():
  table = ClassInfo(("background", "cell"), instance=True).table()
  assert table[[0, 1, 254, 255, 256, 65535]].tolist() == [0, 1, 1, IGNORE, 1, 1]


def test_a_file_holds_what_it_says(tmp_path):
  content = {
    "classes": ["sky", "road"],
    "palette": [[1, 2, 3], [4, 5, 6]],
    "ignore_label": None,
    "ignore_color": [7, 8, 9],
    "mask_values": [3, 300],
    "note": "for people",
  }
  info = ClassInfo.load(write(tmp_path, content))
  assert info.names == ("sky", "road")
  assert info.palette.tolist() == [[1, 2, 3], [4, 5, 6]]
  assert (info.ignore_label, info.ignore_color) == (None, (7, 8, 9))
  assert info.values == (3, 300)
  info.save(tmp_path / "again.json")
  assert ClassInfo.load(tmp_path / "again.json").to_json() == info.to_json()


def test_defaults(tmp_path):
  info = ClassInfo.load(write(tmp_path, {"classes": ["a", "b", "c"]}))
  np.testing.assert_array_equal(info.palette, voc_colormap(3))
  assert info.ignore_label == 255
  assert info.values == (0, 1, 2)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("{oops", r"classes\.json: is not valid JSON .*A valid one is"),
    ([], r'must hold a list of names under "classes"'),
    ({"names": ["a"]}, r'must hold a list of names under "classes"'),
    ({"classes": "abc"}, r'must hold a list of names under "classes"'),
    ({"classes": []}, r"0 names, but 1 to 255"),
    ({"classes": [str(i) for i in range(256)]}, r"256 names, but 1 to 255"),
    ({"classes": ["a", "b", "a"]}, r"'a' is listed twice"),
    ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, r"1 colors for 2 classes"),
    ({"classes": ["a"], "palette": [[0, 0]]}, r"\[0, 0\] must be \[red, green, blue\]"),
    ({"classes": ["a"], "palette": [[0, 0, 256]]}, r"must be \[red, green, blue\]"),
    ({"classes": ["a", "b"], "palette": [[9, 9, 9]] * 2}, r"a, b share the color \[9, 9, 9\]"),
    ({"classes": ["a", "b"], "pallete": []}, r'"pallete"; did you mean "palette"'),
    ({"classes": ["a", "b"], "ignore_label": 1}, r"1 is also the mask value of class 'b'"),
    ({"classes": ["a", "b"], "ignore_label": "void"}, r"void must be a whole number or null"),
    ({"classes": ["a", "b"], "ignore_label": True}, r"True must be a whole number or null"),
    ({"classes": ["a", "b"], "mask_values": [0]}, r"\[0\] must be 2 different values"),
    ({"classes": ["a", "b"], "mask_values": [0, 0]}, r"must be 2 different values"),
    ({"classes": ["a", "b"], "mask_values": [0, 70000]}, r"from 0 to 65535"),
    ({"classes": ["a"], "task": "instance"}, r"at least one class of objects.* but 1 classes"),
    ({"classes": ["a"], "task": "semantic3d"}, r'"semantic3d" is not for images'),
  ],
)
def test_mistakes_are_named(tmp_path, content, message):
  with pytest.raises(InputError, match=message) as error:
    ClassInfo.load(write(tmp_path, content))
  assert "classes.json" in str(error.value)


def test_a_missing_file_says_what_it_must_hold(tmp_path):
  with pytest.raises(InputError, match=r'classes\.json is missing.*\{"classes": \["background"'):
    ClassInfo.load(tmp_path / "classes.json")
