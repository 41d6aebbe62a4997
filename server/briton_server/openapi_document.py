"""`python -m briton_server.openapi_document` prints the OpenAPI document that is committed as server/openapi.json."""

from __future__ import annotations

import json
from pathlib import Path

from briton_server.app import create_app
from briton_server.settings import Settings

if __name__ == "__main__":
    app = create_app(Settings(model_name="", tokenizer_dir=Path(), engine_address=""))
    print(json.dumps(app.openapi(), indent=2))
