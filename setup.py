import re
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

FILES = "https://github.com/zeekay/flask-uwsgi-websocket"

# PyPI shows the README, but does not have the files that it links to.
readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^]]*\])\((?!https?:)", rf"\1({FILES}/raw/HEAD/", readme)
readme = re.sub(r"\]\((?!https?:)", f"]({FILES}/blob/HEAD/", readme)

# The compiled modules rely on the interpreter's global lock.
has_lock = not sysconfig.get_config_var("Py_GIL_DISABLED")
sources = sorted(Path("flask_uwsgi_websocket").glob("*/_*.pyx")) if has_lock else []

# All other metadata is in setup.cfg. Where the C extensions cannot be built, pure Python is used.
setup(
    long_description=readme,
    ext_modules=[Extension(".".join(path.with_suffix("").parts), [str(path)], optional=True) for path in sources],
)
