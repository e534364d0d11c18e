"""Speed and memory against stated goals; `python -m benchmarks` runs them."""
