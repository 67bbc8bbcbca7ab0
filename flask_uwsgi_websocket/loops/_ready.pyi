from .ready import Parked as Parked
from .ready import Queue as Queue
