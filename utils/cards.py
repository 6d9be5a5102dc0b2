"""README.md files that model hubs read: YAML at the top, which programs parse, and text for people below."""

from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader

CARD_FILE = "README.md"
# Its owner names it. To whoever parses the YAML, a comment is as good as no licence.
LICENCE_GAP = "# license: name one here and remove the # (https://huggingface.co/docs/hub/repositories-licenses)"


def render_card(template: Path, metadata: dict[str, Any], **values: Any) -> str:
    """Return a card: the metadata, the gap for a licence, and the template's text with the values in their places."""
    loader = FileSystemLoader(template.parent)
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    top = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    text = environment.get_template(template.name).render(**values)
    return f"---\n{top}{LICENCE_GAP}\n---\n\n{text}"
