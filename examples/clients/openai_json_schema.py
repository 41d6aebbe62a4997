"""An answer that follows a type, token by token, with OpenAI's client (`pip install openai`)."""

from typing import Literal

from openai import OpenAI
from pydantic import BaseModel


class Ticket(BaseModel):
    """What the answer is."""

    kind: Literal["question", "complaint", "order"]
    product: str
    is_urgent: bool


client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
text = "My kettle arrived broken, and I have guests tomorrow. Please send another one!"
reply = client.chat.completions.parse(
    model="smollm2-135m-instruct",
    messages=[{"role": "user", "content": f"Describe this message:\n\n{text}"}],
    response_format=Ticket,
    temperature=0,
    max_tokens=100,
)
ticket = reply.choices[0].message.parsed
assert ticket is not None, reply.choices[0].finish_reason  # "length": cut off, so no whole object
print(ticket.model_dump_json())
