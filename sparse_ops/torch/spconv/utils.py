"""Point clouds into voxels, and values of voxels back to their points."""
