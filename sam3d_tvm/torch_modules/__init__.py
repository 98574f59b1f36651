"""PyTorch modules of the dense components, for import only: compiled components run without torch."""
