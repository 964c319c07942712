#!/usr/bin/env python3
"""Runs commands and draws what a terminal shows of them, as an SVG without fonts or scripts of others.

usage: record_terminal.py OUT.svg COMMAND...
       Each COMMAND is a line for the shell, shown behind a prompt. One that fails ends the recording.
"""

import html
import pathlib
import subprocess
import sys
import textwrap

COLUMNS, FONT, LINE, MARGIN = 96, 14, 20, 20
# Of a monospaced font, about.
ADVANCE = 0.602 * FONT


def record(commands):
    """Lines as (kind, text)."""
    lines = []
    for command in commands:
        run = subprocess.run(command, shell=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if run.returncode:
            sys.exit(f"{command} failed:\n{run.stdout}")
        lines.append(("command", command))
        for line in run.stdout.rstrip("\n").split("\n"):
            wrapped = textwrap.wrap(line, COLUMNS, drop_whitespace=False, replace_whitespace=False) or [""]
            lines += [("output", part) for part in wrapped]
        lines.append(("output", ""))
    return lines[:-1]


def draw(lines):
    width, height = round(2 * MARGIN + COLUMNS * ADVANCE), 2 * MARGIN + LINE * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        "<title>A terminal</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#15181e"/>',
        f'<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="{FONT}" xml:space="preserve">',
    ]
    for row, (kind, text) in enumerate(lines):
        y = MARGIN + LINE * row + FONT
        if kind == "command":
            prompt = '<tspan fill="#7fd28f">$ </tspan>'
            parts.append(f'<text x="{MARGIN}" y="{y}" fill="#ffffff">{prompt}{html.escape(text)}</text>')
        elif text:
            parts.append(f'<text x="{MARGIN}" y="{y}" fill="#c5cad3">{html.escape(text)}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__.split("\n\n")[1])
    pathlib.Path(sys.argv[1]).write_text(draw(record(sys.argv[2:])))


if __name__ == "__main__":
    main()
