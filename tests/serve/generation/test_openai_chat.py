"""OpenAI's chat, for a model that carries a template."""

from dataclasses import replace

import jsonschema
import pytest
from fake_decoder import FakeDecoding
from test_openai_completions import COUNT, ERROR, USAGE
from text_server import events, text_of

from ingot.core.errors import ServeError
from ingot.models.ends import Ends
from ingot.models.model import GENERATION_FILE
from ingot.serve.generation.chat import ChatTemplate
from ingot.serve.problems import RequestError

URL = "/v1/chat/completions"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)
TOKEN = {
    "type": "object",
    "required": ["token", "logprob", "bytes", "top_logprobs"],
    "properties": {
        "token": {"type": "string"}, "logprob": {"type": "number"},
        "bytes": {"type": "array", "items": COUNT}, "top_logprobs": {"type": "array"},
    },
}  # fmt: skip
COMPLETION = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices"],
    "properties": {
        "object": {"const": "chat.completion"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["finish_reason", "index", "message", "logprobs"],
                "properties": {
                    "finish_reason": {"enum": ["stop", "length"]},
                    "message": {
                        "type": "object",
                        "required": ["role", "content", "refusal"],
                        "properties": {"role": {"const": "assistant"}},
                    },
                    "logprobs": {
                        "anyOf": [
                            {"type": "null"},
                            {
                                "type": "object",
                                "required": ["content", "refusal"],
                                "properties": {"content": {"type": "array", "items": TOKEN}},
                            },
                        ]
                    },
                },
            },
        },
        "usage": USAGE,
    },
}


@pytest.fixture
def http(serving, model):
    files = Ends((), TEMPLATE).as_files()
    (model.path / GENERATION_FILE).write_bytes(files[GENERATION_FILE])
    with serving(FakeDecoding()) as (client, _):
        yield client


def ask(*contents, **more):
    messages = [{"role": "user", "content": content} for content in contents]
    return {"model": "writer", "messages": messages, "temperature": 0, "max_tokens": 6, **more}


def test_messages_become_a_prompt_and_the_answer_has_the_published_shape(http):
    body = http.post(URL, json=ask("A", "BC", logprobs=True, top_logprobs=2)).json()

    jsonschema.validate(body, COMPLETION)
    (choice,) = body["choices"]
    assert choice["message"]["content"] == text_of("ABC", 6)
    assert [len(row["top_logprobs"]) for row in choice["logprobs"]["content"]] == [2] * 6
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


def test_a_stream_says_who_speaks_then_what(http):
    sent = ask("ABC", stream=True, stream_options={"include_usage": True})

    first, *chunks, counts, done = events(http.post(URL, json=sent))

    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {chunk["object"] for chunk in (first, *chunks)} == {"chat.completion.chunk"}
    text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert text == text_of("ABC", 6)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert counts["usage"]["completion_tokens"] == 6
    assert done == "[DONE]"


def test_content_may_be_parts_of_text_and_the_limit_may_have_its_newer_name(http):
    parts = [{"type": "text", "text": "AB"}, {"type": "text", "text": "C"}]
    sent = ask(parts, max_tokens=None, max_completion_tokens=2)

    assert http.post(URL, json=sent).json()["choices"][0]["message"]["content"] == text_of("ABC", 2)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"messages": []}, "one message or more"),
        ({"messages": [{"role": "system", "content": "A"}]}, "no system here"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only"),
        ({"messages": [{"content": "A"}]}, "must have a role"),
        ({"messages": "A"}, "$.messages"),
        ({"tools": [{}]}, "tools must be"),
        ({"response_format": {"type": "json_object"}}, "response_format must be"),
        ({"top_logprobs": 2}, "with logprobs=true"),
    ],
)
def test_refusals_have_the_form_of_the_api(http, more, words):
    answer = http.post(URL, json=ask("A") | more)

    assert answer.status_code == 400
    jsonschema.validate(answer.json(), ERROR)
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_reaches_nothing_but_messages(template):
    made = ChatTemplate(Ends(chat_template=template))

    with pytest.raises(RequestError, match="chat template must take the messages"):
        made.prompt([{"role": "user", "content": "A"}])


def test_a_template_that_is_none_keeps_the_endpoint_from_starting(serving, model):
    broken = Ends((), "{% for %}").as_files()[GENERATION_FILE]
    (model.path / GENERATION_FILE).write_bytes(broken)

    with pytest.raises(ServeError, match="must be Jinja"), serving():
        pass


def test_templates_see_the_tokens_that_they_name():
    ends = Ends(chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    made = ChatTemplate(replace(ends, named={"bos_token": "<s>", "eos_token": "</s>"}))

    assert made.prompt([{"role": "user", "content": "A"}]) == "<s>A</s>"
