#!/usr/bin/env python3
"""Collect free documentation as plain-text passages with headings, for the two bundled models.

No model hub is needed, and none is asked: the text comes with the Rust toolchain and in Debian packages, whose
sources and licences are known. Packages are fetched and unpacked, not installed. A passage is some paragraphs below
one heading, about 25 to 250 words, without code blocks and tables. Whole documents (files) are held out, chosen by the
hash of their name, so that no evaluation sees a neighbour of its question in training.

Writes OUT/passages.jsonl, one {source, licence, document, title, heading, text, split} a line, and OUT/sources.json,
what each source gave. The text is never committed.

usage: corpus.py [OUT]        (default: target/train)
needs: Debian's apt-get, dpkg-deb and groff; a Rust toolchain with its documentation; pip install lxml
"""
import concurrent.futures
import gzip
import hashlib
import json
import pathlib
import re
import subprocess
import sys

import lxml.html

WORDS_MIN, WORDS_ENOUGH, WORDS_MAX = 25, 140, 250
HELD_OUT = 20  # one document in so many

# package: licence, folder below usr/share, what to leave out
DEBIAN = {
    "python3.11-doc": ("PSF-2.0", "doc/python3.11/html", r"genindex|py-modindex|contents|search|/_|changelog"),
    "postgresql-doc-15": ("PostgreSQL", "doc/postgresql-doc-15/html", r"bookindex|release"),
    "git-doc": ("GPL-2.0", "doc/git-doc", r"RelNotes"),
    "sqlite3-doc": (
        "public domain", "doc/sqlite3", r"releaselog|/syntax/|changes|list|requirements|matrix|crossref|oldnews"),
    "apache2-doc": ("Apache-2.0", "doc/apache2-doc/manual/en", r"sitemap|index"),
    "debian-handbook": ("GPL-2.0-or-later OR CC-BY-SA-3.0", "doc/debian-handbook/html/en-US", r"index\.html|ix01"),
    "debian-policy": ("GPL-2.0-or-later", "doc/debian-policy/policy.html", r"genindex|search|index"),
    "debian-reference-en": ("GPL-2.0-or-later", "debian-reference", r"index"),
    "developers-reference": ("GPL-2.0-or-later", "developers-reference", r"genindex|search|index"),
    "doc-base": ("GPL-2.0-or-later", "doc/doc-base", r"index"),
    "manpages": ("GPL-2.0-or-later, BSD, MIT and the man-pages licences", "man", r"man8/ld"),
    "manpages-dev": ("GPL-2.0-or-later, BSD, MIT and the man-pages licences", "man", r"type\.3"),
}
RUST_LICENCE = "MIT OR Apache-2.0"
RUST_FOLDERS = [
    "book", "cargo", "clippy", "edition-guide", "error_codes", "nomicon", "reference", "rust-by-example", "rustc",
    "rustdoc", "std", "style-guide", "unstable-book",
]
RUST_WITHOUT = r"/print\.html|/(es|ja|ko|zh)/|-edition/|first-edition|/std/(arch|simd|os|intrinsics)/|/toc\.html|/all\.html"

HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
BLOCKS = {"p", "ul", "ol", "dl", "div", "table", "pre"}
CLUTTER = (
    "//script|//style|//nav|//pre|//table|//footer|//button|//a[@class='headerlink' or @class='anchor']"
    "|//a[contains(@class,'src')]|//*[contains(@class,'navheader') or contains(@class,'navfooter') or @role='navigation'"
    " or contains(@class,'sphinxsidebar') or contains(@class,'sidebar') or contains(@class,'toc') or contains(@class,'related')]"
)


def tidy(text):
    text = re.sub(r"\s+", " ", text.replace("\u00b6", "").replace("\u00a7", " "))
    return re.sub(r"\s+([,.;:)])(?=\s|$)", r"\1", text).strip()


def heading_of(element, path):
    """The heading as a person would write it: no numbering, and of a signature the name alone."""
    anchor = element.get("id") or ""
    if element.tag == "dt" and "sig" in (element.get("class") or ""):
        return anchor
    if "code-header" in (element.get("class") or ""):
        names = element.xpath(".//a[contains(@class,'fn')]/text()")
        owner = path.name.split(".")[-2]
        return f"{owner}::{names[0]}" if names and path.name[0] in "pstue" else ""
    return without_numbering(tidy(element.text_content()))


def without_numbering(text):
    text = re.sub(r"^((Chapter|Appendix|Section|Part)\s+\w+\.|[\dA-Z]+(\.\d+)*\.|\d+(\.\d+)+)\s*", "", text)
    return text[:90]


def html_paragraphs(path):
    """(heading or None, paragraph) of one page, in order; the page's title comes first as a heading."""
    page = lxml.html.fromstring(path.read_bytes())
    if not (page.get("lang") or "en").startswith("en"):
        return
    for element in page.xpath(CLUTTER):
        if element.getparent() is not None:
            element.drop_tree()
    title = page.findtext(".//title") or path.stem
    title = tidy(re.split(r" — | – | in std| - Rust|\(7\)| - The | - Apache| - Error codes| - Clippy", title)[0])
    yield without_numbering(title), None
    body = page.find("body")
    for element in (body if body is not None else page).iter():
        if element.tag in HEADINGS or element.tag == "dt":
            yield heading_of(element, path), None
        elif element.tag == "p" or element.get("class") == "para" or (
            element.tag in ("li", "dd") and not any(c.tag in BLOCKS for c in element)
        ):
            yield None, tidy(element.text_content())


def manual_paragraphs(path):
    """The same of a manual page, set by groff on a line so long that a paragraph is one line."""
    roff = gzip.open(path).read()
    if roff.startswith(b".so "):
        return
    command = ["groff", "-man", "-Tutf8", "-P-cbou", "-rLL=20000n", "-rHY=0", "-t", "-Kutf8"]
    text = subprocess.run(command, input=roff, capture_output=True).stdout.decode("utf-8", "replace")
    text = text.replace("\u2010", "-").replace("\u2019", "'").replace("\u2018", "'").replace("\u2212", "-")
    name = path.name.split(".")[0]
    yield name, None
    for line in text.splitlines()[1:]:
        if line and not line[0].isspace():
            section = line.strip().capitalize()
            yield (name if section in ("Name", "Description") else f"{name}: {section}"), None
        elif line.startswith("       ") and len(line.split()) > 5:
            yield None, tidy(line)


def passages(source, licence, root, path):
    """What one file gives."""
    document = f"{source}/{path.relative_to(root)}"
    held_out = int(hashlib.sha256(document.encode()).hexdigest(), 16) % HELD_OUT == 0
    title, heading, text, found = "", "", [], []

    def flush():
        words = " ".join(text).split()
        if len(words) >= WORDS_MIN and heading:
            found.append(dict(
                source=source, licence=licence, document=document, title=title, heading=heading,
                text=" ".join(words[:WORDS_MAX]), split="heldout" if held_out else "train"))
        text.clear()

    try:
        for new_heading, paragraph in (manual_paragraphs if path.suffix == ".gz" else html_paragraphs)(path):
            if new_heading is not None:
                flush()
                title, heading = title or new_heading, new_heading or heading
                continue
            letters = sum(c.isascii() and (c.isalpha() or c == " ") for c in paragraph)
            if len(paragraph.split()) < 4 or letters < 0.8 * len(paragraph):
                continue
            if paragraph.startswith("Available Languages"):
                continue
            if text and sum(len(t.split()) for t in text) + len(paragraph.split()) > WORDS_MAX:
                flush()
            text.append(paragraph)
            if sum(len(t.split()) for t in text) >= WORDS_ENOUGH:
                flush()
        flush()
    except (lxml.etree.LxmlError, ValueError, UnicodeDecodeError) as error:
        print(f"{path}: left out: {error}", file=sys.stderr)
    return found


def debian_package(folder, package):
    """Version of a package, and where it is unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=True)
    archive = next(folder.glob(f"{package}_*.deb"))
    unpacked = folder / package
    if not unpacked.exists():
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
    return archive.name.split("_")[1].replace("%3a", ":"), unpacked


def sources(folder):
    """(source, version, licence, root, files) of everything there is."""
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    version = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    root = pathlib.Path(sysroot) / "share/doc/rust/html"
    for name in RUST_FOLDERS:
        files = [p for p in sorted((root / name).rglob("*.html")) if not re.search(RUST_WITHOUT, str(p))]
        yield f"rust-{name}", version, RUST_LICENCE, root, files
    for package, (licence, below, without) in DEBIAN.items():
        version, unpacked = debian_package(folder, package)
        root = unpacked / "usr/share" / below
        files = [p for p in sorted(root.rglob("*")) if p.is_file() and not re.search(without, str(p.relative_to(unpacked)))]
        files = [p for p in files if re.search(r"\.html?$|/man\d/.*\.gz$", str(p)) or p.name.endswith(".html.en")]
        yield package, version, licence, root, files


def write_passages(out, name, sources, changed=lambda passage: passage):
    """Writes OUT/NAME.jsonl, each passage once, and what each source gave; returns how many there are."""
    seen, listing = set(), []
    with open(out / f"{name}.jsonl", "w", encoding="utf-8") as file, concurrent.futures.ProcessPoolExecutor(3) as pool:
        for source, version, licence, root, files in sources:
            kept, count = 0, len(files)
            for found in pool.map(passages, [source] * count, [licence] * count, [root] * count, files, chunksize=8):
                for passage in found:
                    key = hashlib.sha256(re.sub(r"\W+", " ", passage["text"].lower())[:400].encode()).digest()
                    if key in seen:
                        continue
                    seen.add(key)
                    file.write(json.dumps(changed(passage), ensure_ascii=False) + "\n")
                    kept += 1
            listing.append(dict(source=source, version=version, licence=licence, documents=count, passages=kept))
            print(f"{source} {version}: {count} documents, {kept} passages", flush=True)
    listing_name = "sources.json" if name == "passages" else f"{name}-sources.json"
    (out / listing_name).write_text(json.dumps(listing, indent=2) + "\n")
    return len(seen)


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/train")
    print(f"{write_passages(out, 'passages', sources(out / 'debs'))} passages")


if __name__ == "__main__":
    main()
