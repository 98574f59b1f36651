"""Hand-written TIR kernels for sparse 3D deep learning: one family per file, its numpy oracle beside it.

This layer knows targets and TIR. It knows neither Relax nor torch.
"""

from .cpu.threads import use_available_cores

use_available_cores()
