"""Many photos: a folder or a CSV of them through the pipeline, in this process or on a Ray cluster.

    from sam3d_tvm.batch import read_jobs, run_batch

    jobs = read_jobs("photos", output="out")
    rows = run_batch(pipeline, jobs, "out", formats=["ply"], max_memory=8 << 30)

`jobs` knows layouts, `tasks` what goes between the parts, `objects` runs a group stage by stage, `run` keeps what is whole and
writes the tables of `report`; `cluster` and `worker` are the same on Ray.
"""

__all__ = ["Job", "Jobs", "Row", "in_this_process", "on_ray", "read_jobs", "run_batch"]
_WHERE = {"Job": "jobs", "Jobs": "jobs", "read_jobs": "jobs", "Row": "tasks", "on_ray": "cluster"}


def __getattr__(name: str):
    """Imported when it is asked for: a worker of a cluster sets its threads before TVM is."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE.get(name, 'run')}"), name)
