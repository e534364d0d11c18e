"""Floor 5: what is learned from many simulations: fitted transports, and how far they are off."""
