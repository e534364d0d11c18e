"""A discrete-event simulator of Mixture-of-Experts inference clusters.

`simulator.api.simulate` does one run; `python -m simulator -h` lists the commands.
"""

__version__ = "0.1.0"
