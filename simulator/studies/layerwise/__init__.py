"""Study `layerwise`: a layer per group of GPUs."""
