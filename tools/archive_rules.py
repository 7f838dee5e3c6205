"""What registry scanners flag, how it is found in a release, and what of it is left on purpose. Standard library alone.

The registry's scanner compares text, in every language, comments and Markdown included, and one finding of the lowest
severity keeps a version from being served (Comfy-Org/registry-backend issue 180). So each kind is looked for twice: by
its text in every file, and in Python by its name, however it was imported, as people read a release too.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass

CODE = (".py", ".js")
LONGEST_LINE = 300  # of code; ours ends at 120, and scanners take longer ones for minified
LONGEST_WORD = 256  # of letters of base64; hashes have 64


@dataclass(frozen=True)
class Kind:
    """One kind of what is flagged.

    Attributes:
        name: What a file does, as an offence is told.
        why: The scanner's rule, or the registry's.
        names: Python's names: these and all below them; with a dot in front, an attribute of anything.
        text: A pattern that no file may hold.
        code: A pattern that no file of code may hold.
    """

    name: str
    why: str
    names: tuple[str, ...] = ()
    text: str = ""
    code: str = ""


# Of the names of os's functions that start programs.
STARTS, ENDS = ("exec", "spawn", "posix_spawn"), ("", "p", "l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")

KINDS = (
    Kind(
        "starts a program",
        "python_command_injection_risk",
        (
            *("subprocess", "os.system", "os.popen", "os.startfile", "os.fork", "pty", "multiprocessing"),
            *("concurrent.futures.ProcessPoolExecutor", "concurrent.futures.process"),
            *("torch.multiprocessing", "torch.utils.cpp_extension"),
            *("asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
            *(f"os.{start}{end}" for start in STARTS for end in ENDS),
        ),
        r"subprocess\.|\bimport subprocess|os\.(system|popen|startfile)\s*\(|\brm -rf|\bsudo\b",
    ),
    Kind(
        "runs text as code",
        "python_dynamic_execution, python_bytecode_manipulation; the registry forbids eval and exec",
        (
            *("eval", "exec", "compile", "__import__", "runpy", "code", "types.CodeType"),
            *("importlib.import_module", "importlib.util.spec_from_file_location", "importlib.machinery"),
        ),
        r"(?<![\w.])(eval|exec)\s*\(|\.eval\s*\(|import_module\s*\(|__import__|\bnew Function\s*\(",
    ),
    Kind(
        "reads what can run code",
        "files that run code when they are read",
        ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch.load", "yaml.load"),
        r"\b(pickle|marshal|torch|joblib|yaml)\.loads?\s*\(|\ballow_pickle\s*=\s*True",
    ),
    Kind(
        "uses the network",
        "python_network_operations, by the calls of sockets too, whatever object they are called on",
        (
            *("socket", "ssl", "http.client", "http.server", "urllib.request", "urllib3", "requests", "httpx"),
            *("asyncio.open_connection", "asyncio.start_server"),
            *("aiohttp.ClientSession", "aiohttp.request", "ftplib", "smtplib", "telnetlib", "xmlrpc"),
            *("websocket", "websockets", "webbrowser"),
            *("huggingface_hub", "torch.hub", ".from_pretrained"),
        ),
        r"\.(connect|bind|sendall|sendto|send|recv|recvfrom|recv_into)\s*\(|urllib\.request|\burl(open|retrieve)\b"
        r"|\brequests\.(get|post|put|patch|delete|head|request|Session)\b|http\.client|socket\.socket|\bgethost"
        r"|aiohttp\s*\.\s*ClientSession|XMLHttpRequest|\bnew WebSocket|sendBeacon|\bfetch\s*\(\s*[\"'`]https?:"
        r"|\bimport\s*\(?\s*[\"'`]https?:",
    ),
    Kind("reaches native code", "calls past Python", ("ctypes", "cffi", "_ctypes"), r"\bctypes\."),
    Kind(
        "installs packages",
        "the registry forbids it at run time",
        ("pip", "ensurepip", "venv", "setuptools", "pkg_resources"),
        code=r"\bpip3?\s+install|-m\s+pip\b",
    ),
    Kind(
        "hides data",
        "encoded or packed text, which nobody can review",
        ("base64", "binascii", "zlib", "gzip", "bz2", "lzma", "codecs.decode"),
        rf"b64decode|fromhex\s*\(|\batob\s*\(|(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{{{LONGEST_WORD}}}",
    ),
    Kind(
        "reads the environment",
        "python_environment_manipulation",
        ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"),
        r"os\.environ|\benviron\[|getenv\s*\(|(un|put)env\s*\(",
    ),
    Kind("opens a database", "python_database_connections", ("sqlite3", "dbm"), r"\bsqlite3\."),
    Kind("uses the folder for temporary files", "flagged beside network operations", ("tempfile.gettempdir",)),
)


@dataclass(frozen=True)
class Left:
    """One kind that one file keeps, with the reason."""

    file: str
    kind: str
    reason: str


LEFT = (
    Left(
        "clear_core/weights/download.py",
        "uses the network",
        "the one download: the released weights, at the press of a button or by a command, never by a workflow",
    ),
    Left(
        "clear_core/weights/client_errors.py",
        "uses the network",
        "asks for proxies and for the client's own settings, to name a wrong one; it sends nothing",
    ),
    Left(
        "clear_core/distill/model_content.py",
        "uses the network",
        "asks the client where a model lies on this machine, with local_files_only",
    ),
    Left(
        "clear_core/distill/commands/load.py",
        "uses the network",
        "diffusers loads the model that the person at the command line names; no node comes here",
    ),
    Left(
        "clear_core/environment.py",
        "reads the environment",
        "the one place: folders for caches, the hub's settings and the ranks of several processes; it sets nothing",
    ),
    Left(
        "clear_core/weights/download_lock.py",
        "uses the folder for temporary files",
        "where the weights' folder takes no locks, processes of this machine find each other's there",
    ),
    Left(
        "clear_core/inspection/locality/page.py",
        "hides data",
        "encodes the pictures of its own page, one file without links; nothing is decoded",
    ),
)


@dataclass(frozen=True)
class Finding:
    """One kind in one file, at the first of the places where it is found."""

    file: str
    line: int
    kind: Kind
    what: str


def findings(file: str, text: str) -> Iterator[Finding]:
    """Each kind that a file shows, once, as the registry counts them.

    Args:
        file: Place in the release, with ``/``.
        text: All of the file.

    Raises:
        SyntaxError: It is Python that cannot be read.
    """
    used = list(used_names(ast.parse(text, file))) if file.endswith(".py") else []
    for kind in KINDS:
        pattern = "|".join(filter(None, (kind.text, kind.code if file.endswith(CODE) else "")))
        found = [(line, name) for name, line in used if is_flagged(name, kind)]
        if pattern and (match := re.search(pattern, text)):
            found.append((text.count("\n", 0, match.start()) + 1, match.group(0)[:40]))
        if found:
            yield Finding(file, min(found)[0], kind, min(found)[1])


def is_flagged(name: str, kind: Kind) -> bool:
    """Whether a dotted name is one of a kind's or below one of them; ``os.*``, whether it brings one."""
    if name.endswith(".*") and any(flagged.startswith(name[:-1]) for flagged in kind.names):
        return True
    return any(
        name.endswith(flagged) if flagged.startswith(".") else name == flagged or name.startswith(f"{flagged}.")
        for flagged in kind.names
    )


def used_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Dotted names of what Python code imports and uses of it, of builtins, and of attributes, with their lines.

    ``import os as o; o.system`` is ``os.system``, and so are ``from os import system`` and ``getattr(os, "system")``.
    """
    known = {name: name for name in dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                known[alias.asname or first] = alias.name if alias.asname else first
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute, ast.Call)) and (name := dotted(node, known)):
            yield name, node.lineno


def dotted(node: ast.AST, known: dict[str, str]) -> str:
    """The dotted name of an expression; of an attribute of something unknown, ``.attribute``; else ""."""
    if isinstance(node, ast.Name):
        return known.get(node.id, "")
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, known)}.{node.attr}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        thing, name = [*node.args, None, None][:2]
        if thing is not None and isinstance(name, ast.Constant) and isinstance(name.value, str):
            return f"{dotted(thing, known)}.{name.value}"
    return ""


def hard_to_read(file: str, text: str) -> Iterator[int]:
    """Numbers of lines of code that scanners take for minified."""
    if file.endswith(CODE):
        yield from (number for number, line in enumerate(text.splitlines(), 1) if len(line) > LONGEST_LINE)
