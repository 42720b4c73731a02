"""Build the trial in place: python setup.py build_ext --inplace (needs Cython and a C compiler)."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    name="engine-spike",
    py_modules=[],
    ext_modules=cythonize([Extension("episode", ["episode.py"], extra_compile_args=["-O3"])]),
)
