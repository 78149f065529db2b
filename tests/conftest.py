"""One PyTorch thread for all tests: their tensors are tiny, and two threads that wait for each other on a busy machine take a
hundred times as long. Set OMP_NUM_THREADS to choose otherwise. The native kernels have threads of their own."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
