#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""house_links.py SOURCE: every relative link of the documents leads to a file, and every #anchor to a heading."""
import re
import sys
from pathlib import Path

root = Path(sys.argv[1])
bad = count = 0


def anchors(path):
    """GitHub's anchors of a document's headings."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.S)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in re.findall(r"^#+ +(.*)$", text, re.M)}


documents = [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "examples").glob("*.md")]
for document in documents:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        count += 1
        path, _, anchor = target.partition("#")
        file = (document.parent / path) if path else document
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            print(f"{document.relative_to(root)}: {target} leads nowhere")
            bad += 1
print(f"{count} links in {len(documents)} documents, {bad} broken")
sys.exit(bad > 0)
