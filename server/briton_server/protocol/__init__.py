"""OpenAI's requests and responses as pydantic models. Shapes and ranges: nothing here knows tokens or the engine."""
