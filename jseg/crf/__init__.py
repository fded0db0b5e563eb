"""The fully connected CRF: inference, unaries, its parameters as text, and a trainable layer."""

from jseg.crf.call import dense_crf, lattice_size, log_marginals
from jseg.crf.layer import DenseCRF
from jseg.crf.mean_field import Kernel, mean_field
from jseg.crf.params import (
  CrfParams,
  load_params,
  params_from_dict,
  params_to_dict,
  parse_params,
  parse_values,
)
from jseg.crf.unary import unary_from_labels, unary_from_probabilities

__all__ = [
  "CrfParams",
  "DenseCRF",
  "Kernel",
  "dense_crf",
  "lattice_size",
  "load_params",
  "log_marginals",
  "mean_field",
  "params_from_dict",
  "params_to_dict",
  "parse_params",
  "parse_values",
  "unary_from_labels",
  "unary_from_probabilities",
]
