"""What mkdocs calls while it builds the site: adds pages made from code and from outside docs/, mends their links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from python_markdown import for_python_markdown
from reference import REFERENCE
from source_links import ADDED, site_links

ROOT = Path(__file__).resolve().parents[2]
SOURCE_OF = {page: source for source, page in ADDED.items()}


def on_files(files: Files, config: Any) -> Files:
    for source, page in ADDED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page, make in REFERENCE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    name = page.file.src_uri
    if name in REFERENCE:
        return markdown
    return for_python_markdown(site_links(markdown, SOURCE_OF.get(name, f"docs/{name}"), name))
