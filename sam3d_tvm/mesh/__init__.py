"""Meshes: extraction from sparse cubes, files and pictures."""
