from __future__ import annotations

import pytest

from lmlab.data import ChatTemplate, Tokenizer
from lmlab.errors import UserError

SOURCE = """\
{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}
[{{ message['role'] }}] {{ message['content'] }}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
MESSAGES = [{"role": "user", "content": "hi <b>"}]


@pytest.fixture
def template():
    return ChatTemplate(SOURCE, {"bos_token": "<s>"})


def test_messages_are_rendered_without_escaping(template):
    assert template.render(MESSAGES) == "<s>[user] hi <b>\n[assistant]"
    assert template.render(MESSAGES, add_generation_prompt=False) == "<s>[user] hi <b>\n"


def test_a_template_that_refuses_messages_says_so(template):
    with pytest.raises(UserError, match="refuses these messages: no tools"):
        template.render([{"role": "tool", "content": ""}])


@pytest.mark.parametrize("message", [{"content": "x"}, {"role": 3, "content": "x"}, {"role": "user"}, "text"], ids=str)
def test_messages_without_role_or_content_are_user_errors(message, template):
    with pytest.raises(UserError, match="Message 2 needs"):
        template.render([*MESSAGES, message])


def test_a_template_cannot_reach_the_machine():
    for source in (
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
    ):
        with pytest.raises(UserError, match="refuses"):
            ChatTemplate(source, {}).render(MESSAGES)


def test_a_broken_template_is_a_user_error():
    with pytest.raises(UserError, match="chat template is broken"):
        ChatTemplate("{% for %}", {})


def test_the_template_travels_with_the_tokenizer(tmp_path):
    tokenizer = Tokenizer.train(["abc abc"], 260)
    with pytest.raises(UserError, match="has no chat template"):
        tokenizer.encode_chat(MESSAGES)
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(SOURCE)
    Tokenizer.load(tmp_path).save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.encode_chat(MESSAGES)[0] == again.bos_id
    assert again.decode(again.encode_chat(MESSAGES)) == "[user] hi <b>\n[assistant]"
