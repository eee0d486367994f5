"""The card of a folder of Parquet files: a README whose YAML header tells Hugging Face's `load_dataset` the splits.

https://huggingface.co/docs/hub/datasets-manual-configuration
"""

from __future__ import annotations

import yaml


def card(versions: dict[str, str], sizes: dict[str, tuple[int, int]]) -> str:
    """README.md.

    Args:
        versions: Name of the version behind each split.
        sizes: Rows and bytes of content of each split.
    """
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in versions]
    header = {"configs": [{"config_name": "default", "data_files": files}]}
    lines = ["---", yaml.safe_dump(header, sort_keys=False).rstrip(), "---", "", "Exported by Argosy.", ""]
    lines += ["| split | version | rows | bytes of content |", "|---|---|---|---|"]
    for split, version in versions.items():
        rows, size = sizes[split]
        lines.append(f"| {split} | {version} | {rows} | {size} |")
    return "\n".join([*lines, ""])
