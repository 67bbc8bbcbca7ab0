from .blocking_calls import BlockingCalls as BlockingCalls
