#!/usr/bin/env python3
"""Collect documents of other fields than the corpus's, for the embedding model alone.

The corpus (corpus.py) is about programming, what people index need not be. Debian also packages manuals about office
work and music, and a long political text; they are read as the corpus is, and documents are held out by the same
hash. A manual about pictures is held out as a whole: with it the evaluation asks what the model makes of a field that
it never met. Writes OUT/general.jsonl, like passages.jsonl, and OUT/general-sources.json.

usage: general.py [OUT]        (default: target/train)
needs: what corpus.py needs
"""

import concurrent.futures
import hashlib
import json
import pathlib
import re
import subprocess
import sys

sys.path.append(str(pathlib.Path(__file__).parent.parent))
from corpus import passages

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


def files(folder, package):
    """Version and root of an unpacked package, and the files in it that are read."""
    _, below, wanted = PACKAGES[package]
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
    archive = next(folder.glob(f"{package}_*.deb"))
    if not (folder / package).exists():
        subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)
    root = folder / package / "usr/share" / below
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and re.search(wanted, str(path))]
    return archive.name.split("_")[1].replace("%3a", ":"), root, found


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/train")
    seen, listing = set(), []
    with open(out / "general.jsonl", "w", encoding="utf-8") as file, concurrent.futures.ProcessPoolExecutor(2) as pool:
        for package, (licence, _, _) in PACKAGES.items():
            version, root, paths = files(out / "debs", package)
            count, kept = len(paths), 0
            for found in pool.map(passages, [package] * count, [licence] * count, [root] * count, paths, chunksize=8):
                for passage in found:
                    key = hashlib.sha256(re.sub(r"\W+", " ", passage["text"].lower())[:400].encode()).digest()
                    if key in seen:
                        continue
                    seen.add(key)
                    passage["heading"] = re.sub(r"^[\d.]+ ", "", passage["heading"])
                    if package == HELD_OUT_WHOLE:
                        passage["split"] = "heldout"
                    file.write(json.dumps(passage, ensure_ascii=False) + "\n")
                    kept += 1
            listing.append(dict(source=package, version=version, licence=licence, documents=count, passages=kept))
            print(f"{package} {version}: {count} documents, {kept} passages", flush=True)
    (out / "general-sources.json").write_text(json.dumps(listing, indent=2) + "\n")


if __name__ == "__main__":
    main()
