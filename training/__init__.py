"""Training of the tiny model that ships: procedural objects, their photos, and every model of the pipeline, from nothing.

    python -m training.all

Not a part of the package that is installed: it needs torch, and writes `sam3d_tvm/data/tiny`.
"""
