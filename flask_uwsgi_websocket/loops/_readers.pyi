from .readers import GeventReader as GeventReader
from .readers import PollReader as PollReader
