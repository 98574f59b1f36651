"""Gaussian splats: from the decoder's numbers to files, pictures and a viewer."""
