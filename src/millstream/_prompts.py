"""What a model is asked: text, or messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec

from millstream._errors import OptionTypeError, OptionValueError

__all__ = [
    "BasePromptValue",
    "ChatMessage",
    "ChatPromptValue",
    "PromptInput",
    "Role",
    "StringPromptValue",
    "as_prompt_value",
]

Role = Literal["system", "user", "assistant", "tool"]

_ROLES = ("system", "user", "assistant", "tool", "developer")
_HUMAN = {"system": "System", "developer": "System", "user": "Human", "assistant": "AI", "tool": "Tool"}


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a chat, in the shape of the OpenAI-compatible wire."""

    role: str
    content: str | tuple[dict[str, Any], ...] | None = None
    """Text, or parts (``{"type": "text", "text": ...}``, ``{"type": "image_url", ...}``); None beside tool calls."""
    name: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise OptionValueError(f"a message's role is one of {', '.join(_ROLES)}, not {self.role!r}")

    @property
    def text(self) -> str:
        """The text of the content, parts joined; ``""`` for None."""
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text", "")) for part in self.content or ())

    @classmethod
    def user(cls, content: str) -> ChatMessage:
        """What a person says."""
        return cls("user", content)

    @classmethod
    def system(cls, content: str) -> ChatMessage:
        """Instructions for the whole chat."""
        return cls("system", content)

    @classmethod
    def assistant(cls, content: str) -> ChatMessage:
        """What the model said."""
        return cls("assistant", content)


class BasePromptValue(msgspec.Struct, frozen=True):
    """A prompt that can be given as text and as messages; each dialect takes what it speaks."""

    def to_string(self) -> str:
        """The prompt as one text."""
        raise NotImplementedError

    def to_messages(self) -> tuple[ChatMessage, ...]:
        """The prompt as messages of a chat."""
        raise NotImplementedError


class StringPromptValue(BasePromptValue, frozen=True):
    """A prompt that is text; as a chat it is one message of the user."""

    text: str

    def to_string(self) -> str:
        return self.text

    def to_messages(self) -> tuple[ChatMessage, ...]:
        return (ChatMessage("user", self.text),)


class ChatPromptValue(BasePromptValue, frozen=True):
    """A prompt that is messages; as text it is ``Human: ...`` lines as LangChain writes them."""

    messages: tuple[ChatMessage, ...]

    def to_string(self) -> str:
        return "\n".join(f"{_HUMAN[message.role]}: {message.text}" for message in self.messages)

    def to_messages(self) -> tuple[ChatMessage, ...]:
        return self.messages


PromptInput: TypeAlias = "str | BasePromptValue | Sequence[ChatMessage | Mapping[str, Any]]"
"""Text, a prompt value, or the messages of one chat (structs, or mappings with ``role`` and ``content``)."""


def as_prompt_value(prompt: Any) -> BasePromptValue:
    """The prompt value of whatever a user may give as one prompt.

    Raises:
        OptionTypeError: it is neither text, nor a prompt value, nor messages.
        OptionValueError: text that can't be written as UTF-8 (a lone surrogate), or a chat without messages.
    """
    if isinstance(prompt, str):
        if not prompt.isascii():
            _check_text(prompt)
        return StringPromptValue(prompt)
    if isinstance(prompt, BasePromptValue):
        return prompt
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray | memoryview):
        return ChatPromptValue(_messages(prompt))
    raise OptionTypeError(f"a prompt is text (str), a prompt value or a list of messages, not {type(prompt).__name__}")


def _messages(items: Sequence[Any]) -> tuple[ChatMessage, ...]:
    if not items:
        raise OptionValueError("a chat needs at least one message")
    messages: list[ChatMessage] = []
    for item in items:
        if isinstance(item, ChatMessage):
            messages.append(item)
        elif isinstance(item, Mapping):
            try:
                messages.append(msgspec.convert(dict(item), ChatMessage))
            except msgspec.ValidationError as error:
                raise OptionTypeError(f"this is no chat message: {error}") from None
        else:
            raise OptionTypeError(
                f"a message is a ChatMessage or a mapping with 'role' and 'content', not {type(item).__name__}; "
                "for several prompts use generate() or map()"
            )
        last = messages[-1]
        if last.content is None and not last.tool_calls:
            raise OptionValueError(f"this message of role {last.role!r} has no content (nor tool_calls)")
        _check_text(last.text)
    return tuple(messages)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OptionValueError(
            f"a prompt must be writable as UTF-8; character {error.start} is {text[error.start]!r}"
        ) from None
