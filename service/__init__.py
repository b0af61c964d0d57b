"""me5's gateway: text in, unit vectors out, over HTTP."""

__version__ = "0.1.0"
