"""Writes tests/golden/unet_resnet34.npz: logits of U-Net in segmentation_models.pytorch.

  pip install torch torchvision segmentation-models-pytorch
  python tools/golden_smp.py

Weights and images come from tests/golden/formula.py.
"""

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import segmentation_models_pytorch as smp
import torch

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
SHAPE = (1, 3, 64, 96)
ARGUMENTS = {"encoder_name": "resnet34", "encoder_weights": None, "classes": 21}
# The branch of a residual unit is made weaker than its input, so that the sums over all units don't
# outgrow the later norms' shifts.
SCALE = {r"encoder\.layer.*\.bn2\.weight$": 0.25}
STEP = 4  # between the rows and columns that are kept

formula = SimpleNamespace(**runpy.run_path(str(GOLDEN / "formula.py")))


@torch.no_grad()
def main() -> None:
  """Computes and writes the file."""
  model = smp.Unet(**ARGUMENTS).eval()
  entries = []
  for name, tensor in model.state_dict().items():
    if not name.endswith("num_batches_tracked"):
      shape = tuple(tensor.shape)
      tensor.copy_(torch.from_numpy(formula.weight(name, shape)))
      for pattern, factor in SCALE.items():
        if re.search(pattern, name):
          tensor.mul_(factor)
      entries.append((name, shape))
  logits = model(torch.from_numpy(formula.image("image", SHAPE))).numpy()
  print(f"{logits.shape}: std {logits.std():.3g}, finite {np.isfinite(logits).all()}")
  meta = {
    "reference": "qubvel-org/segmentation_models.pytorch",
    "versions": {m.__name__: m.__version__ for m in (torch, smp)},
    "class": "segmentation_models_pytorch.Unet",
    "arguments": ARGUMENTS,
    "state_dict": entries,
    "scale": SCALE,
    "parameters": sum(p.numel() for p in model.parameters()),
    "input": {"name": "image", "shape": SHAPE},
    "stride": STEP,
  }
  np.savez_compressed(
    GOLDEN / "unet_resnet34.npz",
    meta=np.array(json.dumps(meta)),
    logits=logits[:, :, ::STEP, ::STEP],
  )


if __name__ == "__main__":
  main()
