"""Chat templates: where they are found, what they are given, what a refusal looks like."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from briton.errors import BuildError, InvalidRequest, Unsupported
from briton.text.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (
    "{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}{% endfor %}"
)
USER = {"role": "user", "content": "Hi"}


def template(text: str, **variables: str) -> ChatTemplate:
    return ChatTemplate({"default": text}, variables)


def test_render() -> None:
    chat = [{"role": "system", "content": "Be brief."}, USER]
    assert template(CHATML).render(chat) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template(CHATML).render([USER], add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_what_templates_rely_on() -> None:
    """Trimmed blocks, loop controls, tojson that leaves HTML alone, the generation tag, the date, special tokens."""
    text = """{{ bos_token }}
    {%- for message in messages %}
        {%- if loop.index > 1 %}{% break %}{% endif %}
        {% generation %}{{ {"a": "<é>"} | tojson }}{% endgeneration %}
    {%- endfor %}
{{ strftime_now("%Y") | length }}{{ flag }}"""
    assert template(text, bos_token="<s>").render([USER, USER], flag=True) == '<s>{"a": "<é>"}4True'


def test_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    named = ChatTemplate({"default": "plain", "tool_use": "{{ tools[0].function.name }}"}, {})
    assert named.render([USER]) == "plain"
    assert named.render([USER], tools=tools) == "f"
    assert template("{{ tools | tojson if tools else 'none' }}").render([USER], tools=tools) == json.dumps(tools)
    assert template("{{ tools | tojson if tools else 'none' }}").render([USER], tools=[]) == "none"


def test_content_parts_become_a_string_where_the_template_wants_one() -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert template(CHATML).render(chat, add_generation_prompt=False) == "<|im_start|>user\na\nb<|im_end|>\n"
    assert template(PARTS).render(chat) == "[a][b]"
    assert template(PARTS).render([{"role": "user", "content": ["a", "b"]}]) == "[a][b]"
    printed = template("{% for message in messages %}{{ message.content }}{% endfor %}")
    assert printed.render(chat) == "a\nb"  # not Python's spelling of a list


def test_a_part_that_is_not_text_is_refused() -> None:
    chat: list[dict[str, object]] = [{**USER}, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    for text in (CHATML, PARTS):
        with pytest.raises(InvalidRequest, match="'image_url': this model takes text only") as caught:
            template(text).render(chat)
        assert caught.value.field == "messages[1].content[0]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ raise_exception('Conversation roles must alternate') }}", "Conversation roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refuses these messages"),
        ("{{ messages[7].content.x.y }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "refuses these messages"),
    ],
)
def test_refusals_are_the_callers(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        template(text).render([USER])
    assert caught.value.field == "messages"


def test_a_caller_cannot_bring_a_template_along() -> None:
    with pytest.raises(InvalidRequest):
        template(CHATML).render([USER], chat_template="{{ 1 }}")


def test_no_template(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no chat template: use /v1/completions"):
        ChatTemplate.load(tmp_path).render([USER])


def test_a_broken_template_fails_at_load(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ 1 }}\n{% if %}")
    with pytest.raises(BuildError, match="line 2"):
        ChatTemplate.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(BuildError, match=r"tokenizer_config\.json is not JSON"):
        ChatTemplate.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(BuildError, match=r"tokenizer_config\.json is not a JSON object"):
        ChatTemplate.load(tmp_path)


def test_where_templates_are_found(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "{{ eos_token }}", "eos_token": {"content": "</s>"}}))
    assert ChatTemplate.load(tmp_path).render([USER]) == "</s>"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate.load(tmp_path).render([USER]) == "two"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "three"}))
    assert ChatTemplate.load(tmp_path).render([USER]) == "three"
    (tmp_path / "chat_template.jinja").write_text("four")
    assert ChatTemplate.load(tmp_path).render([USER]) == "four"
    assert ChatTemplate.load(tmp_path).render([USER], tools=[{}]) == "tools"


def test_the_import_is_late_and_silent() -> None:
    """transformers takes half a second to import, and without torch it says so on stderr."""
    code = (
        "import sys, briton.text.tokenizer, briton.text.chat_template as c\n"
        "assert 'transformers' not in sys.modules and 'tokenizers' in sys.modules\n"
        "assert c.ChatTemplate({'default': 'x'}, {}).render([]) == 'x'\n"
        "assert 'transformers' in sys.modules and 'torch' not in sys.modules\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
