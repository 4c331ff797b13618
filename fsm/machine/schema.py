"""The JSON Schema of states.yaml, so that editors complete and check it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from fsm.machine.spec import Spec

GENERATED: Final = Path(__file__).parent / "states.schema.json"
"""The generated file, which the first line of states.yaml names."""


def json_schema() -> str:
    """Give the schema as JSON text."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema()}
    return json.dumps(schema, indent=2)


def main() -> None:
    """Write the generated file: ``python -m fsm.machine.schema``."""
    GENERATED.write_text(json_schema() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
