"""One thread at a time runs models: hooks, strengths and random numbers belong to whoever runs them.

Steering and the narrowed feed-forward hang on shared modules as hooks, a tokenizer may not be used twice at once, and
sampling seeds torch's global generator. The lock is the process's, for two models may share a frozen LLM. It is held
for a whole call, and in generators for a step at a time: a generator that is abandoned keeps nobody waiting.
"""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
LOCK = threading.RLock()


def exclusive(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, which holds the lock while it runs; not for generators."""

    @functools.wraps(function)
    def alone(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with LOCK:
            return function(*args, **kwargs)

    return alone
