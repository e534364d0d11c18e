"""Study `deepseek-v3`: a published deployment."""
