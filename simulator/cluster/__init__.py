"""The cluster as a graph, and the routes through it."""
