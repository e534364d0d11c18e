"""Serving: requests on groups of GPUs, step after step."""
