from .view_calls import ViewCalls as ViewCalls
