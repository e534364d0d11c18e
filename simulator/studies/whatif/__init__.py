"""What-if studies: a base run, axes, and what changes along them."""
