"""The refinement engine. Knows nothing of Scipion; ``python -m localrefine_plugin.engine`` runs it."""
