"""Writes tests/golden/unet_resnet34.npz: logits of U-Net in segmentation_models.pytorch.

  pip install torch torchvision segmentation-models-pytorch
  python tools/golden_smp.py

Weights and images come from tests/golden/formula.py.
"""

import json

import numpy as np
import segmentation_models_pytorch as smp
import torch
from golden_fill import GOLDEN, fill, formula

SHAPE = (1, 3, 64, 96)
ARGUMENTS = {"encoder_name": "resnet34", "encoder_weights": None, "classes": 21}
# The branch of a residual unit is made weaker than its input, so that the sums over all units don't
# outgrow the later norms' shifts.
SCALE = {r"encoder\.layer.*\.bn2\.weight$": 0.25}
STEP = 4  # between the rows and columns that are kept


@torch.no_grad()
def main() -> None:
  """Computes and writes the file."""
  model = smp.Unet(**ARGUMENTS).eval()
  entries = fill(model, SCALE)
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
