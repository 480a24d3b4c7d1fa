"""Records from the sources of Python's standard library on this machine: four small tasks with nothing to download.

    stdlib:tokens     {"tokens", "tags", "file"}    one of the first logical lines of a module, and the kind of each
                                                    token as `tokenize` says it, keywords apart from other names
    stdlib:summaries  {"code", "summary", "file"}   a function without its docstring, and the docstring's first line
    stdlib:modules    {"code", "module", "file"}    a function's source, and which of MODULES it stands in
    stdlib:arguments  {"question", "code", "answers", "file"}    which is the second or the last argument of a function

A file's records stand in its order; the module `test`, and what a program wrote, are left out.
"""

import ast
import io
import keyword
import pathlib
import sysconfig
import tokenize

from paradigm.errors import choose

KINDS = ("tokens", "summaries", "modules", "arguments")
# Of different subjects, each with about a hundred functions or more, and in every Python from 3.11 on.
MODULES = ("argparse", "asyncio", "collections", "email", "http", "importlib", "logging", "multiprocessing", "typing",
           "unittest", "urllib", "xml")  # fmt: skip
# Not written for readers, or not in every installation of Python.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled", "encodings", "__pycache__",
             "pydoc_data", "idlelib", "tkinter", "turtledemo", "distutils", "lib2to3", "ensurepip"}  # fmt: skip
_LINES = 100  # of a file
_SHOWN = 64  # tokens of a line at most
_SPACE = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}


def templates(kind):
    """(input, target, label, group) of a kind, as of a TextRecords. Raises UserError for another kind."""
    return choose(
        "source stdlib:",
        kind,
        {
            "tokens": ("{tokens}", "", "tags", "file"),
            "summaries": ("{code}", "{summary}", "", "file"),
            "modules": ("{code}", "", "module", ""),
            "arguments": ("{question}", "{code}", "answers", "file"),
        },
    )


def root():
    """The folder of the standard library."""
    return pathlib.Path(sysconfig.get_path("stdlib"))


def files(kind):
    """The paths, sorted, of the sources that a kind reads. Raises UserError for another kind."""
    choose("source stdlib:", kind, dict.fromkeys(KINDS))
    found = (p for p in sorted(root().rglob("*.py")) if not _LEFT_OUT & set(p.relative_to(root()).parts))
    found = (p for p in found if not p.name.startswith("_sysconfigdata"))
    chosen = {
        "tokens": lambda p: p.parent == root(),
        "summaries": lambda p: True,
        "modules": lambda p: _module(p) in MODULES,
        "arguments": lambda p: p.parent == root(),
    }[kind]
    return [p for p in found if chosen(p)]


def _module(path):
    return path.relative_to(root()).parts[0].removesuffix(".py")


def records(kind, path):
    """The records of one file, in order; none of one that this Python cannot read."""
    try:
        source = pathlib.Path(path).read_text("utf-8")
        yield from _READERS[kind](source, pathlib.Path(path))
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError, RecursionError):
        return


def _lines(source, path):
    name, tokens, tags, left = path.relative_to(root()).as_posix(), [], [], _LINES
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if 2 < len(tokens) <= _SHOWN:
                yield {"tokens": tokens, "tags": tags, "file": name}
                left -= 1
                if not left:
                    return
            tokens, tags = [], []
        elif token.type not in _SPACE and token.string.strip():
            tokens.append(" ".join(token.string.split())[:40])
            tags.append(_kind(token))


def _kind(token):
    if token.type == tokenize.NAME:
        return "KEYWORD" if keyword.iskeyword(token.string) else "NAME"
    return tokenize.tok_name[token.type]


def _definitions(source):
    """(function, its source) of the functions and methods of a file that are no part of another one."""
    lines = source.splitlines()

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
            else:
                yield from walk(child)

    for node in walk(ast.parse(source)):
        yield node, lines[node.lineno - 1 : node.end_lineno]


def _plain(lines):
    """Lines as one text, without the indentation that all have."""
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indent:] if not line[:indent].strip() else line for line in lines)


def _summaries(source, path):
    for node, lines in _definitions(source):
        told = ast.get_docstring(node)
        first = told.strip().splitlines()[0].strip() if told and told.strip() else ""
        if len(first) < 10 or len(node.body) < 2:
            continue
        said = node.body[0]
        kept = lines[: said.lineno - node.lineno] + lines[said.end_lineno - node.lineno + 1 :]
        if kept:
            yield {"code": _plain(kept), "summary": first, "file": path.relative_to(root()).as_posix()}


def _functions(source, path):
    for _, lines in _definitions(source):
        if len(lines) > 2:
            yield {"code": _plain(lines), "module": _module(path), "file": path.relative_to(root()).as_posix()}


def _arguments(source, path):
    for node, lines in _definitions(source):
        first, arguments = lines[0], node.args.args
        indent = len(first) - len(first.lstrip())
        for which, k in ("second", 1), ("last", len(arguments) - 1):
            if len(arguments) < 3 or arguments[k].lineno != node.lineno or not first.isascii():
                continue
            name, start = arguments[k].arg, arguments[k].col_offset
            if first[start - 1] == " " and first[start + len(name) : start + len(name) + 1] in (",", ")"):
                answers = [{"text": name, "answer_start": start - indent}]
                asked = f"the {which} argument of {node.name}"
                where = path.relative_to(root()).as_posix()
                yield {"question": asked, "code": _plain(lines[:4]), "answers": answers, "file": where}


_READERS = {"tokens": _lines, "summaries": _summaries, "modules": _functions, "arguments": _arguments}
