"""The fully connected CRF: inference, unaries, and a trainable layer."""

from jseg.crf.inference import CrfParams, dense_crf, lattice_size, log_marginals
from jseg.crf.layer import DenseCRF
from jseg.crf.unary import unary_from_labels, unary_from_probabilities

__all__ = [
  "CrfParams",
  "DenseCRF",
  "dense_crf",
  "lattice_size",
  "log_marginals",
  "unary_from_labels",
  "unary_from_probabilities",
]
