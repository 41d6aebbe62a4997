"""The request fields that say what an answer must be, in the spellings of OpenAI, vLLM, SGLang and llama.cpp.

What cannot be enforced is declared too, to be refused by name: see `briton_server.guides`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from briton_server.protocol.fields import RequestModel, Text

Schema = dict[str, Any]
SchemaOrText = dict[str, Any] | Text
Choices = Annotated[list[Text], Field(min_length=1, fail_fast=True)]


class ClosedModel(RequestModel):
    """A part of a request whose unknown fields are refused: each might be a constraint that nobody enforces."""

    model_config = ConfigDict(extra="forbid")


class JsonSchemaFormat(ClosedModel):
    """A named JSON schema. It is enforced whatever `strict` says."""

    name: Text | None = None
    description: Text | None = None
    json_schema: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(ClosedModel):
    """What the answer's text must be. A schema stands in `json_schema.schema`, as OpenAI has it, or in `schema`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    bare_schema: Annotated[Schema | None, Field(alias="schema")] = None


class StructuredOutputs(ClosedModel):
    """vLLM's constraints: one of them."""

    # pydantic has a method `json`, so the attribute has another name.
    json_schema: Annotated[SchemaOrText | None, Field(alias="json")] = None
    """A JSON schema, as an object or as text."""
    regex: Text | None = None
    choice: Choices | None = None
    json_object: bool | None = None
    grammar: Any = None
    """Not supported: refused."""
    structural_tag: Any = None
    """Not supported: refused."""
    whitespace_pattern: Any = None
    """Not supported: refused."""
    disable_any_whitespace: bool | None = None
    """Not supported: true is refused."""
    disable_additional_properties: bool | None = None
    """Not supported: true is refused."""
    disable_fallback: bool | None = None
    """There is none."""


class ConstraintFields(RequestModel):
    """What the answer must be: one constraint, in one spelling."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    """vLLM's spelling: one of `json`, `regex`, `choice` and `json_object`."""
    guided_json: SchemaOrText | None = None
    """A JSON schema, as an object or as text, that the answer follows."""
    guided_regex: Text | None = None
    """A regular expression, in Rust's syntax, that the whole answer matches."""
    guided_choice: Choices | None = None
    """The answer is one of these."""
    guided_json_object: bool | None = None
    """As `response_format` of type `json_object`."""
    json_schema: SchemaOrText | None = None
    """As `guided_json`: the spelling of SGLang and llama.cpp."""
    regex: Text | None = None
    """As `guided_regex`: SGLang's spelling."""
    guided_grammar: Any = None
    """Not supported: refused."""
    guided_whitespace_pattern: Any = None
    """Not supported: refused."""
    grammar: Any = None
    """Not supported: refused."""
    ebnf: Any = None
    """Not supported: refused."""
    structural_tag: Any = None
    """Not supported: refused."""
    lark: Any = None
    """Not supported: refused."""
    format: Any = None
    """Not supported: refused."""
    # pydantic has methods of these two names.
    json_value: Annotated[Any, Field(alias="json")] = None
    """Not supported: refused."""
    schema_value: Annotated[Any, Field(alias="schema")] = None
    """Not supported: refused."""
    choice: Any = None
    """Not supported: refused."""
    choices: Any = None
    """Not supported: refused."""
    guided_decoding: Any = None
    """Not supported: refused."""
    guided_params: Any = None
    """Not supported: refused."""
    guidance: Any = None
    """Not supported: refused."""
    nvext: Any = None
    """Dynamo's extensions: ignored, but for constraints in them."""
    text: Any = None
    """The Responses API's options of a text: ignored, but for a `format`."""
    allowed_token_ids: Any = None
    """Not supported: refused."""
    logits_processors: Any = None
    """Not supported: refused."""
    custom_logit_processor: Any = None
    """Not supported: refused."""
