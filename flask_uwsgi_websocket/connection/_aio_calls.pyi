from .aio_calls import AsyncioCalls as AsyncioCalls
