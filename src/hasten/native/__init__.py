"""C++ kernels behind a C interface. Imports nothing of Hasten."""
