"""What the page on models at work shows is what the service reads."""

from __future__ import annotations

import re
from pathlib import Path

from sagittal.serve.config import read_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models-at-work.md"


def test_the_configuration_of_the_page_is_read(tmp_path: Path) -> None:
    blocks = re.findall(r"^ *```toml\n(.*?)^ *```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 3
    file = tmp_path / "sagittal.toml"
    file.write_text("\n".join(blocks) + '\n[[destination]]\nname = "pacs"\nkind = "folder"\npath = "/tmp"\n')
    (entry,) = read_config(file).model
    assert (entry.name, entry.role, entry.memory_bytes, entry.limit_s) == ("liver", "answers", None, 1800.0)
    assert [rule.image for rule in entry.series] == ["", "T1", "FLAIR"]
    rule = entry.series[0]
    assert (rule.thickness_mm, rule.contrast, rule.images_least, rule.prefer) == ((0.0, 3.0), True, 40, "thinnest")
