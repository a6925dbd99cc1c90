"""Being told what happens: handlers, the manager that calls them, and ready ones."""

from millstream.callbacks._base import BaseCallbackHandler
from millstream.callbacks._console import ConsoleCallbackHandler
from millstream.callbacks._logging import LoggingCallbackHandler
from millstream.callbacks._manager import CallbackManager, CallbackManagerForLLMRun, Callbacks

__all__ = [
    "BaseCallbackHandler",
    "CallbackManager",
    "CallbackManagerForLLMRun",
    "Callbacks",
    "ConsoleCallbackHandler",
    "LoggingCallbackHandler",
]
