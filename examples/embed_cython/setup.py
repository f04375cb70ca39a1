"""One extension module; it finds cylstm's .pxd wherever cylstm is installed."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(ext_modules=cythonize([Extension("feedback", ["feedback.pyx"])], build_dir="build"))
