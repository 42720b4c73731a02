import sys, time
from pathlib import Path
from setuptools import setup
from Cython.Build import cythonize
sys.path.insert(0, str(Path(__file__).parent))
import build_engine
mods = build_engine.write(Path("llmsched_env/engine"), "llmsched_env.engine")
ext = cythonize([str(m) for m in mods], build_dir="build", nthreads=2, compiler_directives=dict(language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False))
for e in ext: e.extra_compile_args = ["-O3"]
setup(name="x", packages=[], ext_modules=ext)
