"""SAM-3D-Objects in Apache TVM: one photo and a mask to a Gaussian splat and a mesh.

    from sam3d_tvm import Pipeline

Nothing here needs torch to run a compiled model. Importing the package itself is cheap; import the part you need.
"""

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str):
    """`Pipeline`, and TVM with it, is imported when it is asked for: the command line first looks at its options."""
    if name == "Pipeline":
        from sam3d_tvm.tvm_without_torch import import_tvm

        import_tvm()
        from sam3d_tvm.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
