#!/usr/bin/env python3
"""Collect documents of other fields than the corpus's, for the embedding model alone.

The corpus (corpus.py) is about programming, what people index need not be. Debian also packages manuals about office
work and music, and a long political text; they are read as the corpus is, and documents are held out by the same
hash. A manual about pictures is held out as a whole: with it the evaluation asks what the model makes of a field that
it never met. Writes OUT/general.jsonl, like passages.jsonl, and OUT/general-sources.json.

usage: general.py [OUT]        (default: target/train)
needs: what corpus.py needs
"""

import pathlib
import re
import sys

sys.path.append(str(pathlib.Path(__file__).parent.parent))
from corpus import debian_package, write_passages

# package: licence, folder below usr/share, the files
PACKAGES = {
    "anarchism": ("GPL-2.0-or-later", "doc/anarchism/html", r"/sec[A-J][1-4]\.html$"),
    "libreoffice-help-en-us": ("MPL-2.0", "libreoffice/help/en-US/text", r"\.html$"),
    "lilypond-doc-html": ("GFDL-1.3-or-later", "doc/lilypond/html/Documentation", r"(notation|learning|essay|music-glossary|usage)/[^.]*\.html$"),
    "debian-faq": ("GPL-2.0-or-later", "doc/debian/FAQ", r"\.en\.html$"),
    "installation-guide-amd64": ("GPL-2.0", "doc/installation-guide-amd64/en", r"\.html$"),
    "gimp-help-en": ("GFDL-1.2-or-later", "gimp/2.0/help/en", r"\.html$"),
}
HELD_OUT_WHOLE = "gimp-help-en"


def sources(folder):
    for package, (licence, below, wanted) in PACKAGES.items():
        version, unpacked = debian_package(folder, package)
        root = unpacked / "usr/share" / below
        files = [path for path in sorted(root.rglob("*")) if path.is_file() and re.search(wanted, str(path))]
        yield package, version, licence, root, files


def changed(passage):
    passage["heading"] = re.sub(r"^[\d.]+ ", "", passage["heading"])
    if passage["source"] == HELD_OUT_WHOLE:
        passage["split"] = "heldout"
    return passage


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/train")
    write_passages(out, "general", sources(out / "debs"), changed)


if __name__ == "__main__":
    main()
