"""What the code of a TorchScript archive says of its recurrent layers. It is read, never run.

A scripted layer has its arguments as constants of its class, a traced one as those of its call:

    class LSTM(Module):
      batch_first : Final[bool] = True
      def forward(self, ...
        _3, _4, _5 = torch.lstm(x, _1, _2, True, 2, 0., False, False, True)
"""

from __future__ import annotations

import re
from typing import Any

from .source import Source
from .unpickle import Name

MAX_CODE = 16 * 2**20  # bytes, of all files
CONSTANT = re.compile(r"^  (\w+) : Final\[\w+\] = (.{1,40})$", re.MULTILINE)
# has_biases, num_layers, dropout, train, bidirectional, batch_first
CALL = re.compile(
    r"= torch\.(lstm|gru|rnn_tanh|rnn_relu)\(.{1,1000}, "
    r"(?:True|False), \d+, ([-+.e\d]{1,30}), \w+, (True|False), (True|False)\)$",
    re.MULTILINE,
)
FROZEN = re.compile(r"= torch\.(lstm|gru|rnn)(?:_tanh|_relu)?(?:_cell)?\(")
BOOLS = {"True": True, "False": False}


class Code:
    """The code of an archive, a file at a time: `of(class)` are the attributes of a layer."""

    def __init__(self, source: Source, root: str) -> None:
        self.source = source
        self.root = root
        self.left = MAX_CODE
        self.files: dict[str, dict[str, str]] = {}  # a module's classes, and their text

    def of(self, name: Name) -> dict[str, Any]:
        """Return the attributes of torch's own recurrent layers, of other classes none."""
        if not name.module.startswith("__torch__.torch.nn."):
            return {}
        text = self._classes(name.module).get(name.name, "")
        found = {key: _value(value) for key, value in CONSTANT.findall(text)}
        if "mode" not in found and len(calls := set(CALL.findall(text))) == 1:
            ((mode, dropout, both, batch_first),) = calls
            found = {
                "mode": mode.upper(),
                "dropout": _value(dropout),
                "bidirectional": _value(both),
                "batch_first": _value(batch_first),
            }
        return found

    def frozen(self) -> dict[str, str]:
        """Return {module: cell} of code that calls recurrent layers with constants for weights."""
        start = f"{self.root}code/"
        found = {}
        for member in self.source.names:
            if member.startswith(start) and member.endswith(".py"):
                name = member[len(start) : -3].replace("/", ".")
                text = "".join(self._classes(name).values())
                if "CONSTANTS." in text and (call := FROZEN.search(text)):
                    found[name] = call[1].upper()
        return found

    def _classes(self, module: str) -> dict[str, str]:
        if module not in self.files:
            member = f"{self.root}code/{module.replace('.', '/')}.py"
            text = ""
            if member in self.source.names:
                content = self.source.member(member, self.left)
                self.left -= len(content)
                text = content.decode(errors="replace")
            parts = re.split(r"^class (\w+)\(Module\):$", text, flags=re.MULTILINE)
            self.files[module] = dict(zip(parts[1::2], parts[2::2]))
        return self.files[module]


def _value(text: str) -> Any:
    if text in BOOLS:
        return BOOLS[text]
    if text[:1] == '"' == text[-1:]:
        return text[1:-1]
    try:
        return float(text)
    except ValueError:
        return None
