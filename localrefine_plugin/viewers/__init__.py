"""Viewers of the plugin; Scipion finds what is named here."""
from .viewer_find_bodies import FindBodiesViewer
from .viewer_local_refine import LocalRefineViewer

__all__ = ["FindBodiesViewer", "LocalRefineViewer"]
