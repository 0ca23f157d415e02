"""Chat templates: as Hugging Face renders them, and harmless."""

from __future__ import annotations

import pytest

from engrain.device.template import ChatTemplate, Message, TemplateError

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
    " + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] | trim }}{% endfor %}"
)
TALK: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye {{ 1 }}"},
]


def test_chatml() -> None:
    template = ChatTemplate(CHATML)
    assert template.render(TALK[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render(TALK[1:3], add_generation_prompt=False).endswith("Hello<|im_end|>\n")


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        # what templates in the wild use: loop controls, generation tags, indented blocks, JSON with non-ASCII
        "{% for m in messages %}\n    {% if m.role == 'system' %}\n        {% continue %}\n    {% endif %}\n"
        "{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ {'a': 'é<&>', 'n': [1, 2]} | tojson }} {{ messages | tojson(indent=2) }}",
        "{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    ],
)
def test_equals_transformers(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    expected, _ = utils.render_jinja_template([TALK], chat_template=source, add_generation_prompt=True)
    assert ChatTemplate(source).render(TALK) == expected[0]


def test_system_text_goes_to_the_user_where_the_template_knows_no_system() -> None:
    text = ChatTemplate(GEMMA2, bos="<bos>").render(TALK)
    assert text.startswith("<bos>[user]Be brief.\n\nHi[assistant]Hello[user]")


def test_without_a_template() -> None:
    template = ChatTemplate(None)
    assert template.render(TALK[:3]) == "Be brief.\n\nUser: Hi\nAssistant: Hello\nAssistant:"
    assert template.render(TALK).endswith("\nAssistant: Hello\nUser: Bye {{ 1 }}\nAssistant:")
    assert template.stops == ("\nUser:", "\nAssistant:")
    assert ChatTemplate(CHATML).stops == ()


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{{ messages[99].content.x }}",
        "{{ 1 / 0 }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * [1, 2] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'a' * 'b' }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ messages }}{% endfor %}{% endfor %}",
    ],
)
def test_hostile_templates_are_one_line_errors(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source).render(TALK[1:2])
    assert "\n" not in str(caught.value)


def test_products_of_a_sensible_size_are_computed() -> None:
    template = ChatTemplate("{{ '-' * 3 }}{{ 2 * [1] }}{{ 3 * 0.5 }}{{ 2 ** 10 }}{{ 10 ** 9 * 10 ** 9 }}")
    assert template.render(TALK) == "---[1, 1]1.510241000000000000000000"


@pytest.mark.parametrize("source", ["{% for %}", "{{ (" + "(" * 5000, "{% nonsense %}"])
def test_broken_templates_are_one_line_errors(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(source)
    assert "\n" not in str(caught.value)
