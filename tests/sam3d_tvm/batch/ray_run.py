"""A batch on a local cluster of two workers, the first of which is killed when an object of it is done; what is run is counted.

    python -m tests.sam3d_tvm.batch.ray_run PHOTOS OUTPUT MARKS ARTIFACTS

In a process of its own, which ends the cluster with it. Prints as JSON the objects that were done before the kill, those whose
structure had come by then, the worker that was killed, and all workers.
"""

import json
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

from sam3d_tvm.tvm_without_torch import import_tvm

import_tvm()

from sam3d_tvm.batch import on_ray, read_jobs, run_batch  # noqa: E402
from sam3d_tvm.pipeline import Pipeline  # noqa: E402

OPTIONS = {"steps": 1, "formats": ["ply"]}
OBJECT_STORE = 80 << 20  # bytes, of which Ray asks for 75 MB at least


class Counting(Pipeline):
    """Leaves a file for each stage of each object that is begun."""

    marks: Path

    def steps(self, image, mask=None, **options):
        steps = super().steps(image, mask, **options)

        def counted():
            while True:
                try:
                    model = next(steps)
                except StopIteration as end:
                    return end.value
                count = len(list(self.marks.glob(f"{image.stem}-{model}-*")))
                (self.marks / f"{image.stem}-{model}-{count}-{os.getpid()}").touch()
                yield model

        return counted()


def open_counting(folder: str, marks: str) -> Counting:
    pipeline = Counting.from_artifacts(folder)
    pipeline.marks = Path(marks)
    return pipeline


def main(photos: str, output: str, marks: str, artifacts: str) -> None:
    import ray

    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as temporary:  # a short path, as sockets have short names
        store = {"object_store_memory": OBJECT_STORE, "_plasma_directory": temporary, "_temp_dir": temporary}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **store)
        try:
            workers, done, structures, killed = [], [], [], []

            def kill_the_first(event):
                if event.worker not in workers:
                    workers.append(event.worker)
                if killed:
                    return
                if event.model == "ss_decoder":
                    structures.append(event.task.job.name)
                if event.row is not None and not event.row.error:
                    done.append(event.task.job.name)
                    killed.append(event.worker)
                    os.kill(int(event.worker.rpartition(":")[2]), signal.SIGKILL)

            runner = on_ray(threads=1, open_pipeline=partial(open_counting, artifacts, marks))
            pipeline, jobs = Pipeline.from_artifacts(artifacts), read_jobs(photos)
            run_batch(pipeline, jobs, output, runner=runner, on_event=kill_the_first, **OPTIONS)
            print(json.dumps({"done": done, "structures": structures, "killed": killed, "workers": workers}))
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
