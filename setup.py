from setuptools import setup

# All metadata is in setup.cfg; the optional extension module will be declared here.
setup()
