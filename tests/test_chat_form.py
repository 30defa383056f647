"""Chat templates without Jinja: what the form renders is what the template renders, or it is refused by name."""

import json

import pytest

from alize.artifact.strict import canonical
from alize.chat_form import chat_form, chat_form_json, render_form
from alize.runtimes.chat_template import render_chat
from tests.tiny import CHAT_TEMPLATE

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}

BLOCKS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
BLOCKS += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|system|>Be kind.<|end|>{% endif %}" + BLOCKS
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
SYSTEM_IN_LAST_USER = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set said = messages[1:] %}"
    "{% else %}{% set said = messages %}{% endif %}{{ bos_token }}{% for m in said %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "{% if m.role == 'user' %}{% if loop.last and system is defined %}[INST] {{ system }}\n\n{{ m.content }}[/INST]"
    "{% else %}[INST] {{ m.content }}[/INST]{% endif %}{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
EXPRESSIBLE = {
    "tiny": CHAT_TEMPLATE,
    "blocks": BLOCKS,
    "default system": DEFAULT_SYSTEM,
    "turns": TURNS,
    "system in the last user message": SYSTEM_IN_LAST_USER,
}
REFUSED = {
    "the date": ("{{ strftime_now('%d') }}" + BLOCKS, "date of the day"),
    "numbers": ("{% for m in messages %}{{ loop.index }}. {{ m.content }}{% endfor %}", "more than the neighbours"),
    "thoughts cut out": (
        "{% for m in messages %}{{ m.role }}{{ m.content.split('</think>')[-1] }}{% endfor %}",
        "looks into the contents",
    ),
    "twice": ("{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.content }}{% endfor %}", "moves, repeats or leaves out"),
    "last only": ("{{ messages[-1].content }}", "moves, repeats or leaves out"),
    "broken": ("{% for %}", "cannot be parsed"),
    "refuses all": ("{{ raise_exception('no') }}", "renders no conversation"),
}


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_the_form_renders_what_the_template_renders(name: str) -> None:
    form = json.loads(chat_form_json(EXPRESSIBLE[name], VARIABLES))
    assert form["refused"] is None
    messages = [{"role": role, "content": f"  {role}, ہے 🐫 \n"} for role in ("system", *["user", "assistant"] * 12, "user")]
    for said in (messages, messages[1:], messages[1:2], messages[:2], messages[1:3]):
        for prompt in (True, False):
            try:
                expected = render_chat(EXPRESSIBLE[name], said, variables=VARIABLES, add_generation_prompt=prompt)
            except Exception:  # noqa: BLE001
                expected = None
            assert render_form(form, said, prompt=prompt) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_is_refused_by_name(name: str) -> None:
    template, reason = REFUSED[name]
    form = chat_form(template, VARIABLES)
    assert reason in str(form["refused"])
    assert canonical(form)


def test_roles_out_of_turn_have_no_place() -> None:
    form = chat_form(TURNS, VARIABLES)
    assert render_form(form, [{"role": "assistant", "content": "x"}], prompt=True) is None
    strip = form["strip"]
    assert isinstance(strip, list)
    assert set(strip) & {"user", "assistant"} == {"assistant"}
