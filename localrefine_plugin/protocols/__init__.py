"""Protocols of the plugin; Scipion finds what is named here."""
from .protocol_local_refine import ProtLocalRefine

__all__ = ["ProtLocalRefine"]
