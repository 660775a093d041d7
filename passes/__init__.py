"""Passes: one verb-named file each; `pipeline` holds their order."""
