"""Shortcut-aware training of multimodal reward models, and export as checkpoints that `beholder` serves."""

from beholder import __version__

__all__ = ["__version__"]
