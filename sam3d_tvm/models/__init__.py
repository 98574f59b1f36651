"""The models of SAM-3D-Objects, a folder a model: sizes, network, what runs it compiled, and a descriptor.

To add one: its folder, and a line here.
"""

from importlib import import_module

from sam3d_tvm.models.descriptor import Model

# The folder of each model by upstream's name for it, in the order in which they run.
FOLDERS = {
    "depth_model": "moge",
    "ss_condition_embedder": "condition_embedder",
    "ss_generator": "structure_flow",
    "ss_decoder": "structure_decoder",
    "slat_condition_embedder": "condition_embedder",
    "slat_generator": "slat_generator",
    "slat_decoder_gs": "gaussian_decoder",
    "slat_decoder_gs_4": "gaussian_decoder",
    "slat_decoder_mesh": "mesh_decoder",
}
MODELS: dict[str, Model] = {
    name: import_module(f"{__name__}.{folder}.descriptor").DESCRIPTORS[name] for name, folder in FOLDERS.items()
}
