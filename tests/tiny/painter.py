"""The family of docs/add-a-host.md, added as the page says: its package can be imported, its file
lies in hosts/, its line is in the table.
"""

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

import smidgen.hosts
from smidgen.hosts.host import HOSTS
from smidgen.models.base import Base
from tests.tiny.bases import base_of

PAGE = Path(__file__).parents[2] / "docs" / "add-a-host.md"
PACKAGE, HOST = "painter_package", "smidgen.hosts.painter"


def add_painter(folder: Path, monkeypatch) -> ModuleType:
    """The package; `folder` takes the host's file, and `monkeypatch` takes all of it back."""
    text = PAGE.read_text(encoding="utf-8")
    package_source, host_source = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (line,) = re.findall(r'```text\n( +"painter_package.*?)```', text, re.DOTALL)
    package = ModuleType(PACKAGE)
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    exec(compile(package_source, str(PAGE), "exec"), vars(package))
    (folder / "painter.py").write_text(host_source, encoding="utf-8")
    monkeypatch.setattr(smidgen.hosts, "__path__", [*smidgen.hosts.__path__, str(folder)])
    monkeypatch.setitem(sys.modules, HOST, None)  # so that it is forgotten at the end,
    del sys.modules[HOST]  # and read from its file now
    ((name, module),) = ast.literal_eval(f"{{{line}}}").items()
    monkeypatch.setitem(HOSTS, name, module)
    return package


def painter_base(package: ModuleType) -> Base:
    """A float64 base of the example's network."""
    model = package.Painter().double().requires_grad_(False)
    return base_of(model)
