from .channel import Channel as Channel

def memory_of(obj: object, default: int = ...) -> int: ...  # as sys.getsizeof()
