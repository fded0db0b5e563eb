"""Your own loss and your own optimizer, in Python.

  python examples/own_loss.py --steps=200 --workdir=runs/own_loss

A loss returns a sum and a count, never a mean: the trainer adds both up over all devices and
divides last, so that two devices equal one whatever their pixels. (A loss of logits and labels can
also be named in a configuration: `config.loss.name = "own_loss:symmetric"`.)
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import optax

import jseg
from jseg.types import IGNORE, Array, Outputs


def symmetric(
  logits: Array,
  label: Array,
  *,
  class_weights: Array | None = None,
  pixel_weights: Array | None = None,
) -> tuple[Array, Array]:
  """Cross-entropy plus reverse cross-entropy (Wang et al. 2019, arXiv:1908.06112, equation 5).

  Args:
    logits: float [... k].
    label: int [...], each in [0, k) or IGNORE.
    class_weights: not taken.
    pixel_weights: not taken.

  Returns:
    (sum over the valid pixels, number of valid pixels).
  """
  del class_weights, pixel_weights
  valid = label != IGNORE
  truth = jax.nn.one_hot(label, logits.shape[-1])  # 0 everywhere where void
  forward = -(jax.nn.log_softmax(logits) * truth).sum(-1)
  # The logarithm of a zero in the truth is set to -4, as in the paper.
  reverse = 4.0 * (jax.nn.softmax(logits) * (1.0 - truth)).sum(-1)
  loss = jnp.where(valid, forward + 0.1 * reverse, 0.0)
  return loss.sum(), valid.sum(dtype=jnp.float32)


def losses(outputs: Outputs, targets) -> dict[str, tuple[Array, Array]]:
  """The losses of a training batch by name."""
  return {"symmetric": symmetric(outputs.logits, targets.label)}


def main() -> None:
  """Trains a small U-Net with it."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/own_loss"))
  arguments = parser.parse_args()

  config = jseg.config.default("unet", widths=(16, 32, 64))
  config.steps = arguments.steps
  config.eval_every = config.checkpoint_every = arguments.steps
  config.data.options = {"size": 64, "train": 200, "val": 20}
  config.data.size = (64, 64)
  optimizer = optax.lion(optax.cosine_decay_schedule(1e-3, arguments.steps))
  scores = jseg.train(
    config,
    arguments.workdir,
    losses=losses,
    optimizer=optimizer,
    on_evaluate=lambda step, metrics: print(step, round(metrics["miou"], 3)),
  )
  print(f"validation mIoU {scores.primary:.3f}")


if __name__ == "__main__":
  main()
