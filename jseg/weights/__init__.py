"""Weights that were trained elsewhere: read, renamed, reshaped, and put into a network."""

from jseg.weights.convert import Layer, convert
from jseg.weights.files import read_tensors
from jseg.weights.foreign import Foreign, Preprocessing, fold_preprocessing
from jseg.weights.load import Loaded, foreign_variables, load, recognise
from jseg.weights.transfer import Transfer, transfer

__all__ = [
  "Foreign",
  "Layer",
  "Loaded",
  "Preprocessing",
  "Transfer",
  "convert",
  "fold_preprocessing",
  "foreign_variables",
  "load",
  "read_tensors",
  "recognise",
  "transfer",
]
