"""Protocols of the plugin; Scipion finds what is named here."""
from .protocol_compose import ProtLocalCompose
from .protocol_find_bodies import ProtLocalFindBodies
from .protocol_import_cryosparc import ProtLocalImportCryosparc
from .protocol_local_refine import ProtLocalRefine
from .protocol_recentre import ProtLocalRecentre

__all__ = ["ProtLocalCompose", "ProtLocalFindBodies", "ProtLocalImportCryosparc", "ProtLocalRecentre",
           "ProtLocalRefine"]
