from .channel import Channel as Channel

def memory_of(obj: object, default: int = ...) -> int: ...  # as sys.getsizeof()
def put_frame_to_all(channels: list[Channel], whole: bytes) -> list[int]: ...  # as that of channel.py
