"""Viewers of the plugin; Scipion finds what is named here."""
from .viewer_local_refine import LocalRefineViewer

__all__ = ["LocalRefineViewer"]
