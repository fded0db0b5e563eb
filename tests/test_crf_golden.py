"""The CRF equals pydensecrf on the same inputs; see tests/golden/README.md and docs/crf.md."""

import pathlib
import re

import numpy as np
import pytest
from helpers.golden import FOLDER

from jseg import crf

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = np.load(FOLDER / "dense_crf.npz")
Y, X = np.mgrid[:24, :30]
IMAGE = np.stack([(X * 8 + Y * 3) % 256, Y * 10 % 256, (X // 6 + Y // 5) % 2 * 180 + 20], -1)
LABELS = (X // 8 + Y // 7) % 4
LABELS[3, 4] = 255
BASE = crf.CrfParams(5, 1.5, (3.0, 2.0), 2.0, (8.0, 10.0), (20.0, 15.0, 25.0))
MATRIX = np.array([[0, 1, 2, 1], [1, 0, 1, 3], [2, 1, 0, 1], [1, 3, 1, 0]])
PLAIN = crf.CrfParams(5, 1.0, 2.0, 2.0, 10.0, 20.0)


@pytest.mark.parametrize(
  ("name", "params"),
  [
    ("symmetric", BASE),
    ("before", BASE.replace(normalization="before")),
    ("after", BASE.replace(normalization="after")),
    ("none", BASE.replace(normalization="none", spatial_weight=0.015, bilateral_weight=0.02)),
    ("vector", PLAIN.replace(compatibility=-np.array([1, 2, 0.5, 1.5]))),
    ("matrix", PLAIN.replace(compatibility=MATRIX)),
  ],
)
def test_images(name, params):
  logits = crf.unary_from_labels(LABELS, 4, 0.6)
  q = crf.dense_crf(logits, IMAGE, params.replace(spatial_filter="lattice"))
  error = np.abs(q[::3, ::3] - GOLDEN[name])
  assert error.mean() < 1e-5
  assert error.max() < 1e-4


def test_volume():
  volume = (IMAGE.sum(-1).ravel()[:336] % 256).reshape(6, 8, 7, 1)
  labels = (LABELS.ravel()[100:436] % 4).reshape(6, 8, 7)
  params = crf.CrfParams(5, 1.5, (1.0, 2.0, 2.0), 2.0, (3.0, 8.0, 10.0), 20.0)
  params = params.replace(spatial_filter="lattice")
  q = crf.dense_crf(crf.unary_from_labels(labels, 4, 0.6), volume, params, ndim=3)
  np.testing.assert_allclose(q[::3, ::3, ::3], GOLDEN["volume"], atol=1e-4)


def test_the_page_example():
  source = re.search(
    r"<!-- example -->\n```python\n(.*?)```", (ROOT / "docs/crf.md").read_text(), re.S
  )
  scope = {"image": IMAGE.astype(np.uint8), "labels": LABELS}
  exec(source.group(1), scope)
  np.testing.assert_allclose(scope["q"][::3, ::3], GOLDEN["symmetric"], atol=1e-4)
