"""Meshes, grids, sections and distances; mostly calls to libraries."""
