"""Words and turns of phrase that this project does not use; `make lint` runs this.

Each is a translation of something that English says otherwise, or a private name for something that
has a usual one. A phrase is looked for in all text files of the repository, whatever stands around
it, across the ends of lines of a paragraph or comment.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A regular expression, in which a space is white space or a comment leader: what to write instead.
PHRASES = {
    r"\blest\b": "so that ... not, or else",
    r"\bwho(so)?ever\b": "the caller, the one who, any",
    r"\banew\b": "again, from scratch",
    r"\bthe house\b|\brules of the house\b": "the project, the code",
    r"\brooms?\b": "file, part; scratch, space",
    r"\blet(s|ting)? go of\b": "release",
    r"\bgradients? by\b": "gradient with respect to",
    r"\bgradients? of (the|a) loss by\b": "gradient of the loss with respect to",
    r"\bthe loss by (it|its|the|x|y|h_n|c_n)\b": "the loss with respect to",
    r"\bstand(s|ing)? still\b": "do not advance",
    r"\bis no (array|integer|number|float|string|list|module|file|stream|name)\b": "is not a",
    r"\bin hand\b": "at once, being worked on",
    r"\bsome \d+(\.\d+)? (ms|us|%|KiB|MiB|times)": "about",
    r"\bin the place of\b": "in place of, a replacement for",
    r"\bnothing is used up\b": "nothing is consumed",
    r"\bwhat stood\b|\bwhat stands\b": "what is, what was, what ... contains",
    r"\bgives? back\b": "return, release",
    r"\bway back\b": "backward pass",
    r"\btells? what came of\b": "shows the result",
    r"\bhowever it is cut\b": "however you split it",
    r"\bnot meant to\b": "out of scope",
    r"\bgone up by\b|\bcounts? up\b": "increase, increment",
}
LEADER = r"(?:\s|\*|#|//)+"
NOT_TEXT = {".png", ".npz", ".safetensors", ".onnx", ".json", ".pt", ".keras", ".h5", ".csv"}
EXEMPT = {"tools/words.py", "LICENSE"}
EXEMPT_FOLDERS = ("bench/results/", "tests/golden")


def found_in(text: str) -> list[tuple[int, str, str]]:
    """(line, what is there, what to write instead), for each phrase."""
    found = []
    for phrase, instead in PHRASES.items():
        for match in re.finditer(phrase.replace(" ", LEADER), text, re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            found.append((line, " ".join(match[0].split()), instead))
    return sorted(found)


def main() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    count = 0
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if name in EXEMPT or name.startswith(EXEMPT_FOLDERS) or path.suffix in NOT_TEXT:
            continue
        if path.is_symlink() or not path.is_file():
            continue
        for line, phrase, instead in found_in(path.read_text(errors="replace")):
            print(f"{name}:{line}: {phrase!r}: {instead}")
            count += 1
    sys.exit(f"{count} phrases to replace" if count else 0)


if __name__ == "__main__":
    main()
