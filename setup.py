"""The packages of a wheel, which holds the folder configs/ as `sparsejax.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sparsejax*"]), "sparsejax.configs"],
    package_dir={"sparsejax.configs": "configs"},
)
