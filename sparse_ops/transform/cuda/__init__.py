"""From any Relax module to what runs on a CUDA device."""
