from typing import TypeVar

from .channel import Channel as Channel

T = TypeVar("T")

def memory_of(obj: object, default: int = ...) -> int: ...  # as sys.getsizeof()
def put_frame_to_all(channels: list[Channel], whole: bytes) -> list[int]: ...  # as that of channel.py
def find_due(connections: dict[Channel, T], now: float) -> list[T]: ...  # as that of channel.py
