"""Weights that were trained elsewhere: read, renamed, reshaped, and put into a network."""

from jseg.weights.convert import Layer, convert
from jseg.weights.files import foreign_variables, read_tensors
from jseg.weights.transfer import Transfer, transfer

__all__ = ["Layer", "Transfer", "convert", "foreign_variables", "read_tensors", "transfer"]
