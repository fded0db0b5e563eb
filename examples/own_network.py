"""Your own network, trained by jseg's trainer: one class, named in the configuration.

  python examples/own_network.py --steps=200 --workdir=runs/own_network

The trainer, the evaluation and the prediction find the class by its name, `own_network:Sketch`,
where Python can import it. Here the network is handed over as an object instead.
"""

import argparse
import pathlib

import flax.linen as nn
import jax.numpy as jnp

import jseg
from jseg.models import Network
from jseg.nn import Conv, Norm, max_pool, resize_bilinear
from jseg.types import Array, Outputs


class Sketch(Network):
  """Three convolutions at each of two resolutions. [b h w c] -> Outputs with logits [b h w k].

  Attributes:
    width: channels at the finer resolution.
    norm: kind of normalization (`jseg.nn.Norm`).
  """

  width: int = 16
  norm: str = "batch"

  @nn.compact
  def __call__(self, image: Array, *, train: bool = False) -> Outputs:
    """Computes the logits of normalized images."""
    conv, norm = self.typed(Conv), self.typed(Norm)

    def block(x: Array, features: int) -> Array:
      for _ in range(3):
        x = conv(features, (3, 3), use_bias=False)(x)
        x = nn.relu(norm(self.norm)(x, train=train))
      return x

    fine = block(image, self.width)
    coarse = block(max_pool(fine), 2 * self.width)
    x = jnp.concatenate([fine, resize_bilinear(coarse, fine.shape[1:3])], -1)
    return Outputs(conv(self.num_classes, (1, 1))(x).astype(jnp.float32))


def main() -> None:
  """Trains on generated shapes and predicts one image."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/own_network"))
  arguments = parser.parse_args()

  network = Sketch(num_classes=5)
  config = jseg.config.default(network)
  config.steps = arguments.steps
  config.eval_every = config.checkpoint_every = arguments.steps
  config.data.options = {"size": 64, "train": 200, "val": 20}
  config.data.size = (64, 64)
  config.optim.lr = 0.05
  scores = jseg.train(config, arguments.workdir, model=network)
  print(f"validation mIoU {scores.primary:.3f}")

  # `model=` because this class lives in a script; one in a module of yours is found by its name.
  segmenter = jseg.Segmenter.from_run(arguments.workdir, model=network)
  run = jseg.Run.open(arguments.workdir, model=network)
  example = run.dataset().source("val")[0]
  prediction = segmenter(example["image"])
  print({name: round(share, 3) for name, share in prediction.shares().items()})


if __name__ == "__main__":
  main()
