"""Study `mlperf-summarization`: a two-node service."""
