"""Study `prophet`: expert prediction and prefetch on four clusters."""
