"""The skeleton of a backend: the example's project, with the contract's methods left to write.

The project's files are copied from the example, under other names. The methods and their docstrings come from the
contract itself: `pqcore.backend`, and `pqcore.benchmarks.baseline.BareLoop`. Method bodies that suit every driver
come from the example.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from textwrap import dedent, indent
from typing import TYPE_CHECKING

from pqcore.backend import Capability

if TYPE_CHECKING:
    from importlib.abc import Traversable

KEPT = ("cursor", "wrap", "close_connection")
"""Methods whose bodies in the example suit every driver."""
NOT_YET = "not written yet"
_INIT = {
    "Session": """def __init__(self, connection: Any, *, prepared: bool) -> None:
    self.connection = connection
    self._prepared = prepared
""",
    "Backend": """def __init__(self, *, prepared: bool = True) -> None:
    self._prepared = prepared
""",
}
_BARE_INIT = """def __init__(self, statements: Statements, batch: int, connection: Any) -> None:
    super().__init__(statements, batch, connection)
    # Each statement has its text in `sql`: statements.put.sql, put_many, get, get_many, lease and ack.
"""


@dataclass(frozen=True)
class Face:
    """A backend of one mode that is still to be written.

    Attributes:
        mode: ``"blocking"`` or ``"async"``.
        name: The backend's name.
        package: The package's name.
        driver: The name of the driver's module.
    """

    mode: str
    name: str
    package: str
    driver: str

    @property
    def is_async(self) -> bool:
        return self.mode == "async"

    @property
    def module(self) -> str:
        """The name of the module with the session and the backend."""
        return "aio" if self.is_async else "backend"

    @property
    def bare(self) -> str:
        """The name of the module with the bare loop."""
        return "bare_aio" if self.is_async else "bare"

    @property
    def constant(self) -> str:
        """The name of the face's `BackendSpec`."""
        return self.mode.upper()


class Example:
    """The example of a backend.

    Args:
        folder: The folder of the example's project.

    Attributes:
        name: The backend's name.
        package: The name of the package.
    """

    def __init__(self, folder: Traversable) -> None:
        self._folder = folder
        [self.name] = re.findall(r'(?m)^name = "pqcore-([\w-]+)"$', self.text("pyproject.toml"))
        self.package = f"pqcore_{self.name.replace('-', '_')}"

    def text(self, path: str) -> str:
        """Return the text of one of the example's files."""
        return str(self._folder.joinpath(*path.split("/")).read_text("utf-8"))

    def renamed(self, path: str, name: str, package: str) -> str:
        """Return the text of one of the example's files, with other names."""
        return self.text(path).replace(self.package, package).replace(self.name, name)

    @cached_property
    def methods(self) -> Mapping[str, str]:
        """Return the source of the methods in `KEPT`."""
        source = self.text(f"{self.package}/backend.py")
        return {
            node.name: dedent(ast.get_source_segment(source, node, padded=True) or "")
            for part in ast.parse(source).body
            if isinstance(part, ast.ClassDef)
            for node in part.body
            if isinstance(node, ast.FunctionDef) and node.name in KEPT
        }

    @cached_property
    def session_class(self) -> str:
        """Return the name of the example's session class."""
        found: list[str] = re.findall(r"(?m)^class (\w+Session)\b", self.text(f"{self.package}/backend.py"))
        return found[0]


@lru_cache(maxsize=1)
def example() -> Example:
    """Return the example: a part of the package if pqcore is installed, a folder next to it in a checkout."""
    package = files("pqcore")
    installed = package / "example_backend"
    if installed.is_dir():
        return Example(installed)
    [checkout] = Path(str(package)).parent.glob("examples/pqcore-*")
    return Example(checkout)


# The session and the backend


def session_module(face: Face) -> str:
    """Return the source of the session and the backend of a face."""
    contract = _contract()
    parts = [
        f'"""Sessions over {face.driver}, {face.mode}. Write what raises NotImplementedError."""',
        "from __future__ import annotations",
        "from collections.abc import Sequence\nfrom typing import Any",
        "from pqcore.backend import Row\nfrom pqcore.sql.statement import Query",
        "",
        _class("Session", _about_session(contract, face), _members(face, contract, "DriverSession", "Session")),
        "",
        _class("Backend", "Makes sessions.", _members(face, contract, "Backend", "Backend")),
    ]
    return "\n\n".join(parts).replace("\n\n\n\n", "\n\n\n") + "\n"


def _about_session(contract: ast.Module, face: Face) -> str:
    """Return what the contract says about all sessions and, for an asynchronous driver, about asynchronous ones."""
    said = {
        node.name: (ast.get_docstring(node) or "").split("\n\n")
        for node in contract.body
        if isinstance(node, ast.ClassDef)
    }
    paragraphs = [said["DriverSession"][1], *(said["AsyncDriverSession"][1:] if face.is_async else ())]
    return "One connection.\n\n" + indent("\n\n".join(paragraphs), "    ") + "\n    "


def _members(face: Face, contract: ast.Module, protocol: str, name: str) -> Iterator[str]:
    """Yield the source of a class's constructor, and of the methods of the contract that are not optional."""
    yield _INIT[name]
    awaited = {node.name for node in _functions(contract, f"Async{protocol}") if isinstance(node, ast.AsyncFunctionDef)}
    for node in _functions(contract, protocol):
        said = ast.get_docstring(node) or ""
        if "may be left out" in " ".join(said.lower().split()):
            continue
        kept = example().methods.get(node.name)
        body = _body(kept) if kept is not None else f'raise NotImplementedError("to be written: {name}.{node.name}")\n'
        body = body.replace(example().session_class, "Session")
        is_async = face.is_async and node.name in awaited
        if is_async and body.rstrip().endswith(".close()"):
            body = f"await {body}"
        yield _method(node, said, body, is_async=is_async)


def _method(node: ast.FunctionDef | ast.AsyncFunctionDef, said: str, body: str, *, is_async: bool) -> str:
    decorators = "".join(f"@{ast.unparse(each)}\n" for each in node.decorator_list)
    returns = ast.unparse(node.returns) if node.returns is not None else "None"
    head = f"{'async ' if is_async else ''}def {node.name}({ast.unparse(node.args)}) -> {returns}:\n"
    head = head.replace("DriverSession", "Session")
    return decorators + head + indent(_docstring(said) + body, "    ")


def _docstring(said: str) -> str:
    return f'"""{said}"""\n' if "\n" not in said else f'"""{said}\n"""\n'


def _body(source: str) -> str:
    """Return the body of a function, without its docstring."""
    [function] = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    body = function.body[1:] if ast.get_docstring(function) else function.body
    lines = source.splitlines(keepends=True)[body[0].lineno - 1 :]
    return dedent("".join(lines)).rstrip("\n") + "\n"


def _class(name: str, said: str, members: Iterator[str], attributes: str = "") -> str:
    made = "\n".join(indent(member, "    ") for member in members)
    return f'class {name}:\n    """{said}"""\n\n{attributes}{made}'.rstrip()


def _contract() -> ast.Module:
    return ast.parse((files("pqcore") / "backend.py").read_text("utf-8"))


def _functions(module: ast.Module, name: str) -> Sequence[ast.FunctionDef | ast.AsyncFunctionDef]:
    [found] = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]
    return [node for node in found.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


# The bare loop


def bare_module(face: Face) -> str:
    """Return the source of the bare loop of a face."""
    spec = importlib.util.find_spec("pqcore.benchmarks.baseline")
    source = Path(spec.origin or "") if spec is not None else Path()
    written = _functions(ast.parse(source.read_text("utf-8")), "BareLoop")
    members = [_BARE_INIT]
    for node in written:
        if isinstance(node.body[-1], ast.Raise):
            node.returns = ast.Constant(None)
            body = f'raise NotImplementedError("to be written: Bare.{node.name}")\n'
            members.append(_method(node, ast.get_docstring(node) or "", body, is_async=face.is_async))
    said = (
        f"What a good user of {face.driver} writes.\n\n"
        "    It uses the driver's prepared statements, and never calls the backend's session.\n    "
    )
    attributes = (
        f'    how = "{face.driver}"  # and how it is used, after a comma\n'
        '    bulk = ("the statement",)  # all ways to put many jobs, such as COPY; `chosen` says which one is used\n\n'
    )
    parts = [
        f'"""The bare loop: {face.driver} without pqcore, with which `pqcore bench` compares the backend."""',
        "from __future__ import annotations",
        "from typing import Any",
        "from pqcore.benchmarks.baseline import BareLoop, Statements",
        "",
        _class("Bare(BareLoop)", said, iter(members), attributes),
    ]
    return "\n\n".join(parts).replace("\n\n\n\n", "\n\n\n") + "\n"


# The declaration


def plugin_module(faces: Sequence[Face]) -> str:
    """Return the source of a backend's declaration: a copy of the example's, without the parts left to write."""
    source = example().text(f"{example().package}/plugin.py")
    tree = ast.parse(source)
    [(assigned, call)] = [
        (node, node.value) for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    ]
    declared = ast.get_source_segment(source, assigned) or ""
    specs = "\n\n".join(_spec(face, [each.arg or "" for each in call.keywords]) for face in faces)
    [constant] = [target.id for target in assigned.targets if isinstance(target, ast.Name)]
    registered = ", ".join(face.constant for face in faces) + ("," if len(faces) == 1 else "")
    return (
        source.replace(declared, specs)
        .replace(f"    register({constant})", f"    for spec in ({registered}):\n        register(spec)")
        .replace(f"the {example().name} backend", "the backend")
    )


def _spec(face: Face, fields: Sequence[str]) -> str:
    """Return the declaration of one face, with the example's fields, and the fields that the author must fill in."""
    missing = "".join(f'        Capability.{each.name}: "{NOT_YET}",\n' for each in Capability)
    values = {
        "name": f'"{face.name}"',
        "mode": f'"{face.mode}"',
        "load": f'"{face.package}.{face.module}:Backend"',
        "requires": f'("{face.driver}",),  # modules that must be importable',
        "install": f'"pip install pqcore-{face.name}",  # what to do when they are not',
        "paramstyle": '"numeric_dollar",  # $1; or "format": %s',
        "capabilities": "frozenset(),  # what is written moves here: frozenset({Capability.LISTEN})",
        "missing": f"{{\n{missing}    }}",
        "connections": "(),  # dotted names of the driver's classes of connections, which PQ(connection) then adopts",
        "pools": "(),  # dotted names of the driver's classes of pools, with Capability.POOL",
        "schemes": f'("postgresql+{face.name}",),  # of URLs that choose it',
        "bare_loop": f'"{face.package}.{face.bare}:Bare",  # the benchmarks compare the backend with it',
    }
    lines = [name for name in values if name in fields or name == "pools"]
    written = "".join(f"    {name}={values[name]}{'' if ',  #' in values[name] else ','}\n" for name in lines)
    return f"{face.constant} = BackendSpec(\n{written})"
