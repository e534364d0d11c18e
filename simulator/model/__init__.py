"""What a model costs: bytes, FLOPs, seconds, memory."""
