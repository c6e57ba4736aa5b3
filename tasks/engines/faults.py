"""What can go wrong with an engine, as types: a caller retries, replaces the engine or shows a hint by the type alone.

Each survives pickling, so that it rises out of a Ray actor as it was raised there.
"""

from cgrpo_core.errors import UserError


class EngineLost(RuntimeError):
    """The Ray actor of an engine died, or is not there. What it held is gone; leasing again starts a new one."""


class EngineHung(EngineLost):
    """The engine made no progress for longer than its deadline, and its process was killed."""


class EngineBroken(RuntimeError):
    """The engine raised while it worked on a batch or on weights. It answers no more; leasing again replaces it."""


class CompletionFailed(RuntimeError):
    """The engine took the requests and gave no usable completion for one of them; other calls are not touched."""


class EngineNotStarted(UserError):
    """The engine cannot be started as declared: a model it cannot read, options it refuses, too little memory."""


class RequestInvalid(UserError):
    """A request that no engine could answer: an empty prompt, a repeated id, a limit below one token."""


class PromptTooLong(RequestInvalid):
    """Prompt and completion together exceed what the engine was declared for; nothing was sampled."""


class WeightsMissing(UserError):
    """The directory that was to be loaded has no complete set of safetensors files."""
