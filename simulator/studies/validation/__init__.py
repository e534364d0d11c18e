"""Measured times: fitted parameters, and how far simulated times are off."""
