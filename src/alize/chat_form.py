"""A chat template's form without Jinja, for runtimes in other languages: which text stands between which messages.

chat_form.json (docs/cpp.md) is found by rendering: every short sequence of roles, contents that can be told apart, and then
contents that templates are known to treat specially. A template whose text depends on more than a message's neighbours, its
being the last and a system message at the start is refused by name: the file then says why, and Python goes on with Jinja.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import jinja2
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alize.artifact.strict import canonical
from alize.errors import UsageError
from alize.runtimes.chat_template import chat_environment, render_chat

__all__ = ["CHAT_FORM", "chat_form", "chat_form_json", "render_form"]

CHAT_FORM = "chat_form.json"
_SCHEMA = 1
_ROLES = ("system", "user", "assistant")
_SHORT = 4  # every sequence of roles up to this length is tried
_LONG = 9  # and turns of user and assistant up to this one

Gap = list[str | None]  # literal texts; None = the system message's content
Form = dict[str, object]


class _Refused(Exception):
    pass


def chat_form_json(template: str, variables: Mapping[str, str]) -> str:
    """The text of chat_form.json. variables: bos_token and the like."""
    return canonical(chat_form(template, variables))


def chat_form(template: str, variables: Mapping[str, str]) -> Form:
    """The form, or one whose `refused` says why there is none."""
    try:
        return _Finder(template, variables).find()
    except _Refused as reason:
        return {"schema": _SCHEMA, "refused": str(reason), "strip": [], "system": "inline", "gaps": {}}


def render_form(form: Mapping[str, object], messages: Sequence[Mapping[str, str]], *, prompt: bool) -> str | None:
    """What a runtime makes of the form; None where the form has no place for these roles."""
    gaps, strip = form["gaps"], form["strip"]
    assert isinstance(gaps, dict)
    assert isinstance(strip, list)
    contents = [_strip(message, strip) for message in messages]
    system = messages[0]["role"] == "system"
    keys = _keys([message["role"] for message in messages], moved=form["system"] == "moved", prompt=prompt)
    if any(key not in gaps for key in keys):
        return None
    first = 1 if system and form["system"] == "moved" else 0
    between = ["".join(contents[0] if part is None else part for part in gaps[key]) for key in keys]
    return "".join(itertools.chain(*itertools.zip_longest(between, contents[first:], fillvalue="")))


def _strip(message: Mapping[str, str], strip: Sequence[str]) -> str:
    return message["content"].strip() if message["role"] in strip else message["content"]


def _keys(roles: Sequence[str], *, moved: bool, prompt: bool) -> list[str]:
    """One key for each gap: SYSTEM/BEFORE/AFTER/PLACE."""
    system = "system" if roles[0] == "system" else "none"
    spoken = roles[1:] if moved and system == "system" else roles
    places = [*("more" for _ in spoken[1:]), "last", "last"] if spoken else ["last"]
    names = ["start", *spoken, "prompt" if prompt else "end"]
    return [f"{system}/{before}/{after}/{place}" for before, after, place in zip(names, names[1:], places, strict=False)]


class _Finder:
    def __init__(self, template: str, variables: Mapping[str, str]) -> None:
        self._template, self._variables = template, variables
        self._strip: list[str] = []
        self._system: Literal["inline", "moved"] = "inline"
        self._gaps: dict[str, Gap] = {}

    def find(self) -> Form:
        constants = self._constants()
        accepted = [(roles, prompt) for roles in _sequences() for prompt in (False, True) if self._accepts(roles, prompt)]
        if not accepted:
            raise _Refused("it renders no conversation of system, user and assistant")
        self._find_strip([roles for roles, _ in accepted])
        self._system = "moved" if any(self._moves_system(roles, prompt) for roles, prompt in accepted) else "inline"
        for roles, prompt in accepted:
            self._learn(roles, prompt)
        form: Form = {
            "schema": _SCHEMA,
            "refused": None,
            "strip": self._strip,
            "system": self._system,
            "gaps": dict(sorted(self._gaps.items())),
        }
        self._check(form, constants)
        return form

    def _render(self, roles: Sequence[str], contents: Sequence[str], prompt: bool) -> str | None:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            return render_chat(self._template, messages, variables=self._variables, add_generation_prompt=prompt)
        except UsageError:
            return None

    def _accepts(self, roles: Sequence[str], prompt: bool) -> bool:
        return self._render(roles, _marks(roles), prompt) is not None

    def _find_strip(self, sequences: list[tuple[str, ...]]) -> None:
        """Roles whose contents lose their white space: to be so at every place."""
        for role in _ROLES:
            for roles in sequences:
                contents = [f" \n{mark}\t " if one == role else mark for one, mark in zip(roles, _marks(roles), strict=True)]
                text = self._render(roles, contents, False) or ""
                if role in roles and _marks(roles)[roles.index(role)] in text:
                    if contents[roles.index(role)] not in text:
                        self._strip.append(role)
                    break

    def _split(self, roles: Sequence[str], prompt: bool) -> tuple[list[str], list[int]]:
        """The texts between contents, and whose contents stand between them."""
        text = self._render(roles, _marks(roles), prompt) or ""
        parts = re.split("\uf8f0([0-9]+)\uf8f1", text)
        return parts[::2], [int(number) for number in parts[1::2]]

    def _moves_system(self, roles: Sequence[str], prompt: bool) -> bool:
        return roles[0] == "system" and self._split(roles, prompt)[1][:1] != [0]

    def _learn(self, roles: Sequence[str], prompt: bool) -> None:
        texts, numbers = self._split(roles, prompt)
        moved = self._system == "moved" and roles[0] == "system"
        gaps: list[Gap] = [[texts[0]]]
        expected = iter(range(1 if moved else 0, len(roles)))
        for number, text in zip(numbers, texts[1:], strict=True):
            if moved and number == 0:
                gaps[-1] += [None, text]
            elif number != next(expected, None):
                raise _Refused(f"it moves, repeats or leaves out what was said in {', '.join(roles)}")
            else:
                gaps.append([text])
        if next(expected, None) is not None:
            raise _Refused(f"it leaves out what was said in {', '.join(roles)}")
        for key, gap in zip(_keys(roles, moved=moved, prompt=prompt), gaps, strict=True):
            written = [part for part in gap if part != ""]
            if self._gaps.setdefault(key, written) != written:
                raise _Refused(f"what it writes at {key} depends on more than the neighbours")

    def _check(self, form: Form, constants: Sequence[str]) -> None:
        """The form renders what the template renders: other contents, and a refusal where that refuses."""
        odd = ["", " ", "\u00a0x\u3000", "a\n\nb", "{{ x }}", "0", *constants, *(f"x{text}y" for text in constants)]
        for roles, prompt in itertools.product(_sequences(), (False, True)):
            self._compare(form, roles, _marks(roles), prompt)
        for roles in (("user",), ("system", "user"), ("user", "assistant", "user"), ("system", "user", "assistant", "user")):
            for content, place in itertools.product(odd, range(len(roles))):
                contents = _marks(roles)
                contents[place] = content
                self._compare(form, roles, contents, True)

    def _compare(self, form: Form, roles: Sequence[str], contents: Sequence[str], prompt: bool) -> None:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        if render_form(form, messages, prompt=prompt) != self._render(roles, contents, prompt):
            raise _Refused(f"its text of {', '.join(roles)} follows other rules, or looks into the contents")

    def _constants(self) -> list[str]:
        """The texts that the template itself names: what it may look for in a message."""
        environment: ImmutableSandboxedEnvironment = chat_environment()
        try:
            tree = environment.parse(self._template)
        except jinja2.TemplateError as error:
            raise _Refused(f"it cannot be parsed: {error}") from error
        names = {node.name for node in tree.find_all(jinja2.nodes.Name)}
        if names & {"strftime_now", "now"}:
            raise _Refused("it writes the date of the day")
        found = {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
        return sorted(text for text in found if text and text not in _ROLES)[:64]


def _sequences() -> Iterator[tuple[str, ...]]:
    for size in range(1, _SHORT + 1):
        yield from itertools.product(_ROLES, repeat=size)
    turns = ("user", "assistant") * _LONG
    for size in range(_SHORT + 1, _LONG + 1):
        yield turns[:size]
        yield ("system", *turns[: size - 1])


def _marks(roles: Sequence[str]) -> list[str]:
    """Contents that no template can mistake: letters of private use around the message's number."""
    return [f"\uf8f0{number}\uf8f1" for number in range(len(roles))]
