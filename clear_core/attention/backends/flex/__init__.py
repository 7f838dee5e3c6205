"""Windows by torch's FlexAttention: the backend with its compiled kernel, and the block mask."""
