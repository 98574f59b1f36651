"""SAM-3D-Objects in Apache TVM: components, checkpoints, sampler, outputs, command line.

Nothing here needs torch to run a compiled model. Importing the package itself is cheap; import the part you need.
"""

__version__ = "0.1.0"
