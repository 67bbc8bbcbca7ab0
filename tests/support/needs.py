"""The requirements of the tests on a machine, besides Python's packages, in one table.

A fixture that needs an entry calls :func:`require`. ``.ci/install`` runs ``needs.py [NAME...]``, which prints a line
for each missing entry: Debian's packages or "root", a tab, and the tests that are left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from typing import NamedTuple


class Need(NamedTuple):
    """Something that a machine may lack.

    :param tests: the tests that need it.
    :param packages: the Debian packages that contain it; none if it cannot be installed.
    :param commands: the programs in it.
    :param files: the files in it.
    :param namespaces: whether it is the right to create namespaces.
    """

    tests: str
    packages: str = ""
    commands: str = ""
    files: str = ""
    namespaces: bool = False

    def is_here(self) -> bool:
        return (
            all(map(shutil.which, self.commands.split()))
            and all(map(os.path.exists, self.files.split()))
            and (not self.namespaces or _may_make_namespaces())
        )

    def __str__(self) -> str:
        return self.packages or "root"


NEEDS = {
    "browser": Need("pages in a browser", "chromium chromium-driver", "chromium chromedriver"),
    "ip": Need("the documentation's pages, cut networks", "iproute2", "ip"),
    "node": Need("clients in Node.js", "nodejs npm", "node npm"),
    "proxies": Need(
        "proxies in front of uWSGI", "nginx haproxy openssl systemd", "nginx haproxy openssl systemd-analyze"
    ),
    "redis": Need("rooms with Redis", "redis-server openssl", "redis-server openssl"),
    # uWSGI supports TLS if these files exist when it is compiled.
    "TLS": Need("TLS in uWSGI", "libssl-dev", files="/usr/include/openssl/ssl.h"),
    "namespaces": Need("tests with their own network or root directory", namespaces=True),
}


@lru_cache
def _may_make_namespaces() -> bool:
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "true"]
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


def require(*names: str) -> None:
    """Skip a test on a machine that lacks one of :data:`NEEDS`. In CI that is a failure."""
    import pytest  # .ci/install runs without pytest

    missing = [str(NEEDS[name]) for name in names if not NEEDS[name].is_here()]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


if __name__ == "__main__":
    for name in sys.argv[1:] or NEEDS:
        if not NEEDS[name].is_here():
            print(NEEDS[name], NEEDS[name].tests, sep="\t")  # noqa: T201
