"""The second half of the pipeline on the emulated device: from voxels to a splat, each model against the CPU's.

`python -m tests.cuda_pipeline` does the embedder and the mesh, too, and with --first-half what comes before.
"""

import numpy as np

from sam3d_tvm.pipeline import Pipeline
from tests.cuda_pipeline import ball, compared, on_device, recorded
from tests.sam3d_tvm.tiny_pipeline import disc_photo

MODELS = ("slat_generator", "slat_decoder_gs")  # on the device; others run on the CPU


def test_voxels_become_a_splat():
    structure = ball(40)
    with recorded() as calls:
        result = Pipeline(on_device(MODELS)).generate(disc_photo(), seed=3, steps=1, structure=structure, formats=["ply"])
    np.testing.assert_array_equal(result.coords, structure.coords)
    assert len(result.gaussians) == 4 * len(structure.coords)
    found = [each for call in calls for each in compared(call)]
    assert {each.name.partition(".")[0] for each in found} == {"slat_condition_embedder", *MODELS}
    assert not [f"{each.name}: {each.problem}" for each in found if not each.ok]
