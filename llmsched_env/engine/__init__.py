"""The engine: one simulated episode, in typed Python that Cython compiles when the package is built."""
