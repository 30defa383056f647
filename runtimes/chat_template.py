"""Chat templates: the Jinja templates that travel with a tokenizer, rendered as Hugging Face does.

Templates come from strangers: they run in jinja2's immutable sandbox and see nothing but what is passed here.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alize.errors import UsageError

__all__ = ["chat_environment", "render_chat"]


def render_chat(
    template: str, messages: Sequence[Mapping[str, Any]], *, variables: Mapping[str, str], add_generation_prompt: bool = True
) -> str:
    """The text of a conversation. messages: {"role": ..., "content": ...} each; variables: bos_token and the like.

    Raises UsageError with the template's own words when it refuses the messages, or cannot be parsed.
    """
    try:
        return _compiled(template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **variables
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"the chat template cannot render these messages ({error}): mend them, or prompt without it") from error


@functools.lru_cache(maxsize=4)
def _compiled(template: str) -> jinja2.Template:
    return chat_environment().from_string(template)


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, which marks the assistant's words for training: here only its contents."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def chat_environment() -> ImmutableSandboxedEnvironment:
    """The sandbox that templates run in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
