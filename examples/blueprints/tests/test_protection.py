"""The key that signs sessions."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from community.protection import secret_key


def test_all_who_start_at_once_get_the_same_key_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "instance"
    barrier = Barrier(8)

    def start() -> str:
        barrier.wait()
        return secret_key(directory)

    with ThreadPoolExecutor(8) as pool:
        starts = [pool.submit(start) for _ in range(8)]
    (key,) = {each.result() for each in starts}
    assert len(key) == 64
    assert secret_key(directory) == key
    assert [path.name for path in directory.iterdir()] == ["secret_key"]
    assert (directory / "secret_key").stat().st_mode & 0o777 == 0o600
