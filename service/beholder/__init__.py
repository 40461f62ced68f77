"""Beholder: scores and ranks responses to multimodal prompts with reward models that look at the picture.

Keep this module empty of imports: every start of an interpreter loads it (see `_torchvision`).
"""

__version__ = "0.1.0"
