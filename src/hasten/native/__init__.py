"""C++ kernels behind a C interface (``build``), their loader (``loader``: load, status) and what they offer PyTorch (``kernels``).
Imports nothing of Hasten but ``core.errors``."""
