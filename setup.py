from setuptools import Extension, setup

# All metadata is in setup.cfg. Where the extension cannot be built, the pure-Python engine serves.
setup(
    ext_modules=[
        Extension("flask_uwsgi_websocket._speedups", ["flask_uwsgi_websocket/_speedups.pyx"], optional=True),
    ]
)
