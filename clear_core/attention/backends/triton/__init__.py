"""Windows by a Triton kernel: the backend, its launch, the kernel and its block shapes."""
