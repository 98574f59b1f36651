"""What of spconv 2.3.8 is left out here, and what is meant to differ.

`LEFT_OUT` is complete: a test compares it with the classes, functions and modules that are public in `spconv.pytorch`.
"""

_KERNELS = "calls spconv's own kernels on its own kind of map"
_AUTOGRAD = "gradients are registered for torch.ops.sparse_ops, which any function may call"

LEFT_OUT: dict[str, str] = {
    "constants": "settings of spconv's build",
    "cppcore": "the way to spconv's C++ code",
    "hash": "a hash table on a GPU; torch.ops.sparse_ops.lookup finds rows by their coordinates",
    "interpreter": "for TensorRT; sparse_ops.deploy exports models",
    "quantization": "there is no int8 here",
    "spatial": "its RemoveDuplicate fails when it is called",
    "core.ImplicitGemmIndiceData": "there is one algorithm, whose maps are IndiceData",
    "core.ThrustSortAllocator": "memory of a GPU",
    "conv.SparseConvolutionBase": "one with SparseConvolution, which is the same class with parameters",
    "modules.PrintCurrentTime": "waits for a GPU",
    "functional.SparseConvFunction": _AUTOGRAD,
    "functional.SparseInverseConvFunction": _AUTOGRAD,
    "functional.SparseImplicitGemmFunction": _AUTOGRAD,
    "functional.SubMConvFunction": _AUTOGRAD,
    "functional.SparseMaxPoolFunction": _AUTOGRAD,
    "functional.SparseMaxPoolImplicitGemmFunction": _AUTOGRAD,
    "functional.SparseAvgPoolImplicitGemmFunction": _AUTOGRAD,
    "functional.identity_decorator": "a detail of spconv's",
    "ops.get_indice_pairs": "maps are torch.ops.sparse_ops.submanifold_map and strided_map; IndiceData has spconv's layout",
    "ops.get_indice_pairs_implicit_gemm": _KERNELS,
    "ops.implicit_gemm": _KERNELS,
    "ops.implicit_gemm_backward": _KERNELS,
    "ops.indice_conv": _KERNELS,
    "ops.fused_indice_conv": _KERNELS,
    "ops.indice_conv_backward": _KERNELS,
    "ops.indice_maxpool": _KERNELS,
    "ops.indice_maxpool_backward": _KERNELS,
    "ops.indice_maxpool_implicit_gemm": _KERNELS,
    "ops.indice_maxpool_implicit_gemm_backward": _KERNELS,
    "ops.indice_avgpool_implicit_gemm": _KERNELS,
    "ops.indice_avgpool_implicit_gemm_backward": _KERNELS,
    "ops.maximum_value_int_": "a detail of record_voxel_count",
    "ops.global_pool_rearrange": "global pools are torch.ops.sparse_ops.segment_pool",
}

DIFFERENCES: tuple[str, ...] = (
    "Every bad input is a ValueError that names the argument, what was given and what was expected, not an AssertionError.",
    "Four axes and tensors on another device than a CPU are refused. So are even kernels of submanifold layers, an output "
    "padding that is not below the larger of stride and dilation, and a kernel that the padded grid has no room for.",
    "Rows behind strided and transposed layers are grouped by batch element, and within one in spconv's order.",
    "A voxel that is twice in indices is refused when the first map is built on it; spconv's results depend on which it finds.",
    "A map under a key is refused for other voxels than its own, also where their number is the same, and where its indices "
    "were changed in place since. Maps without a key are shared by all layers on the same indices.",
    "A key may be shared by layers with another `algo`: there is one algorithm.",
    "Sums are float32 whatever fp32_accum says; a bias works in evaluation too, with any number of threads.",
    "`subm` of a pool counts on a CPU too: spconv ignores it there.",
    "SparseGlobalAvgPool returns the mean of every channel, [B, C]: spconv returns that of the first alone. A batch element "
    "without voxels has 0, where spconv fails.",
    "An activation is applied once, behind what add_input adds: spconv applies it before the sum too. A layer of kernel 1 adds "
    "add_input, which spconv ignores.",
    "SparseSequential runs its modules on the features of a tensor without voxels too, so that widths stay right.",
    "AddTable and JoinTable take a list of one; JoinTable takes tensors of other channels.",
    "sparse_add sums over voxels in ascending order, and sparse_add_hash_based does the same; spconv's has an order by chance.",
    "select_by_index returns the rows without touching the maps of the tensor; spconv's fails. `+=` replaces the features of a "
    "tensor, where spconv's fails, and 0 + x is x, so that `sum` works.",
    "PointToVoxel(empty_mean=True) takes the mean of the voxel's own points; spconv's on a CPU adds that of the voxel before.",
    "record_voxel_count counts in eager calls, and not in what torch.export traces.",
    "SPCONV_SAVED_WEIGHT_LAYOUT is read when a state is loaded, and permutes a weight once.",
)
