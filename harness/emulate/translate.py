"""From preprocessed CUDA C++ to C++: inline PTX and ``__shared__`` variables, the two things that no macro can replace.

    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    ->  { auto& o0 = y; const auto o1 = ptx::operand_f(x); ptx::ex2_approx_ftz_f32(o0, o1); }

    __shared__ float partial[WARPS];    ->  a reference to a place in the block's arena, the same one for all threads
    extern __shared__ T tile[];         ->  a pointer to the block's dynamic shared memory

Lines stay where they are, so that errors and sanitizer reports name the kernel's own lines. System headers are left
alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trtforge.bindings.errors import ForgeError
from trtforge.harness.emulate.instructions import SPECIAL_REGISTERS, function_of

_LINE_MARKER = re.compile(r'^# (\d+) "((?:[^"\\]|\\.)*)"([ \d]*)$', re.M)
_WORD = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|\b(?:asm|__asm__|__shared__)\b')
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ALIGNED = re.compile(
    r"\s*(?:alignas\s*\(([^()]*)\)|__attribute__\s*\(\(\s*(?:__)?aligned(?:__)?\s*\(([^()]*)\)\s*\)\))\s*"
)
_REGISTER_TYPES = {"pred": "bool", "f32": "float", "f64": "double", "b16": "std::uint16_t", "b64": "std::uint64_t"}
_LARGEST_ALIGNMENT = 1024


class NotEmulated(ForgeError):
    """The kernel uses something that the emulation does not have; the message names it and where it stands."""


@dataclass(frozen=True)
class Translated:
    """C++ text, and the largest alignment that an ``extern __shared__`` array declares (at least 16 bytes)."""

    text: str
    dynamic_alignment: int


def _split(text: str, separator: str) -> list[str]:
    """Split at separators outside of brackets and strings."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        c = text[i]
        if c in "\"'":
            i += 1
            while i < len(text) and text[i] != c:
                i += 2 if text[i] == "\\" else 1
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
        i += 1
    parts.append(text[start:])
    return parts


def _closing(text: str, opening: int) -> int:
    """The index of the parenthesis that closes the one at ``opening``."""
    depth, i = 0, opening
    while i < len(text):
        c = text[i]
        if c == '"':
            i += 1
            while text[i] != '"':
                i += 2 if text[i] == "\\" else 1
        elif c == "(":
            depth += 1
        elif c == ")":
            depth -= 1
            if depth == 0:
                return i
        i += 1
    raise NotEmulated("inline assembly whose parentheses do not close")


# ---- PTX ---------------------------------------------------------------------------------------------------------


def _statements(template: str) -> Iterator[str]:
    """The instructions of a template, without comments and scope braces."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", template, flags=re.S)
    for part in text.split(";"):
        statement = part.strip()
        while statement[:1] in ("{", "}"):
            statement = statement[1:].strip()
        if statement:
            yield re.sub(r"\s+", " ", statement)


def _operand(text: str) -> list[str]:
    """C++ arguments for one PTX operand."""
    text = text.strip()
    if text.startswith("["):
        return [argument for part in _split(text[1:-1], ",") for argument in _operand(part)]
    if text.startswith("{"):
        return [f"::emulate::ptx::group({', '.join(a for part in _split(text[1:-1], ',') for a in _operand(part))})"]
    if "|" in text:
        return [argument for part in text.split("|") for argument in _operand(part)]
    if text == "_":
        return ["::emulate::ptx::Discard{}"]
    if text.startswith("%%"):
        if text[2:] not in SPECIAL_REGISTERS:
            raise NotEmulated(f"the special register {text[1:]}")
        return [f"::emulate::ptx::{SPECIAL_REGISTERS[text[2:]]}"]
    text = re.sub(r"%(\d+)", r"o\1", text)
    return [re.sub(r"^0f([0-9a-fA-F]{8})$", r"__uint_as_float(0x\1u)", text)]


def _instruction(statement: str) -> str:
    """One PTX statement as a C++ statement."""
    if statement.startswith(".reg"):
        _, kind, names = statement.split(None, 2)
        return f"{_REGISTER_TYPES.get(kind[1:], 'std::uint32_t')} {names.replace(',', '{},')}{{}};"
    guard = re.match(r"@(!?)(\w+) ", statement)
    if guard is not None:
        return f"if ({guard[1]}{guard[2]}) {_instruction(statement[guard.end() :])}"
    mnemonic, _, rest = statement.partition(" ")
    function = function_of(mnemonic)
    if function is None:
        raise NotEmulated(f"the PTX instruction {mnemonic}")
    arguments = [a for part in _split(rest, ",") for a in _operand(part)] if rest.strip() else []
    return f"::emulate::ptx::{function}({', '.join(arguments)});"


def _assembly(inside: str) -> str:
    """The C++ statement of ``asm(inside)``."""
    sections = [*_split(inside, ":"), "", "", ""]
    template = "".join(m[1] for m in _STRING.finditer(sections[0]))
    template = template.replace("\\n", "\n").replace("\\t", " ").replace('\\"', '"')
    statements = list(_statements(template))
    if not statements:
        return "do { } while (false)"
    bound, number = [], 0
    for section, is_output in ((sections[1], True), (sections[2], False)):
        for operand in _split(section, ",") if section.strip() else []:
            match = re.match(r'\s*"([^"]*)"\s*', operand)
            if match is None:
                raise NotEmulated(f"the operand {operand.strip()} of inline assembly")
            expression = operand[match.end() :].strip()
            if is_output:
                bound.append(f"auto& o{number} = {expression};")
            else:
                bound.append(f"const auto o{number} = ::emulate::ptx::operand_{match[1].strip()}{expression};")
            number += 1
    body = " ".join([*bound, *map(_instruction, statements)])
    return f"do {{ {body} }} while (false)"


# ---- shared memory -----------------------------------------------------------------------------------------------


def _alignment(text: str) -> tuple[int, str]:
    """Take alignment specifiers off the front of a declaration."""
    alignment = 1
    while (match := _ALIGNED.match(text)) is not None:
        written = (match[1] or match[2]).strip()
        if not written.isdigit():
            raise NotEmulated(f"a __shared__ alignment that is not a number: {written}")
        alignment, text = max(alignment, int(written)), text[match.end() :]
    return alignment, text.strip()


def _dynamic(declaration: str) -> tuple[int, str]:
    alignment, rest = _alignment(declaration)
    match = re.fullmatch(r"(.*?)(\w+)\s*\[\s*\]", rest, re.S)
    if match is None:
        raise NotEmulated(f"the declaration extern __shared__ {rest}")
    kind, name = match[1].strip(), match[2]
    return alignment, f"{kind}* const {name} = static_cast<{kind}*>(::emulate::dynamic_shared());"


def _static(declaration: str, number: int) -> str:
    alignment, rest = _alignment(declaration)
    first, *others = _split(rest, ",")
    match = re.fullmatch(r"(.*[\s*>])(\w+)\s*((?:\[.*\])*)\s*", first, re.S)
    if match is None:
        raise NotEmulated(f"the declaration __shared__ {rest}")
    kind, text = match[1].strip(), ""
    for i, declarator in enumerate([first[match.start(2) :], *others]):
        part = re.fullmatch(r"\s*(\w+)\s*((?:\[.*\])*)\s*", declarator, re.S)
        if part is None:
            raise NotEmulated(f"the declaration __shared__ {rest}")
        tag = f"{number}_{i}"
        text += (
            f"typedef {kind} emulate_type_{tag}{part[2]}; static const char emulate_key_{tag} = 0; "
            f"emulate_type_{tag}& {part[1]} = *static_cast<emulate_type_{tag}*>(::emulate::static_shared("
            f"&emulate_key_{tag}, sizeof(emulate_type_{tag}), "
            f'std::max<std::size_t>({alignment}, alignof(emulate_type_{tag})), "{part[1]}")); '
        )
    return text.strip()


# ---- the whole text ----------------------------------------------------------------------------------------------


def _place(text: str, position: int) -> str:
    """File and line of a position in preprocessed text."""
    markers = list(_LINE_MARKER.finditer(text, 0, position))
    if not markers:
        return f"line {text.count(chr(10), 0, position) + 1}"
    line = int(markers[-1][1]) + text.count("\n", markers[-1].end() + 1, position)
    return f"{markers[-1][2]}:{line}"


def _own_parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, with whether each is the kernel's own (no system header)."""
    start, own = 0, True
    for marker in _LINE_MARKER.finditer(text):
        is_own = "3" not in marker[3].split()
        if is_own != own:
            yield text[start : marker.start()], own
            start, own = marker.start(), is_own
    yield text[start:], own


def translate(text: str) -> Translated:
    """Rewrite preprocessed text. Raises NotEmulated naming the construct, the file and the line."""
    pieces: list[str] = []
    alignment = 16
    number = 0
    for part, own in _own_parts(text):
        if not own:
            pieces.append(part)
            continue
        done = 0
        for word in _WORD.finditer(part):
            if word.start() < done or word[0][0] in "\"'":
                continue
            try:
                if word[0] == "__shared__":
                    end = part.index(";", word.end()) + 1
                    before = re.search(r"\b(extern|static)\s+$", part[done : word.start()])
                    begin = done + before.start() if before else word.start()
                    declaration = part[word.end() : end - 1]
                    if before is not None and before[1] == "extern":
                        declared, replacement = _dynamic(declaration)
                        alignment = max(alignment, declared)
                    else:
                        number += 1
                        replacement = _static(declaration, number)
                else:
                    begin = word.start()
                    opening = part.index("(", word.end())
                    end = _closing(part, opening) + 1
                    replacement = _assembly(part[opening + 1 : end - 1])
            except NotEmulated as error:
                raise NotEmulated(f"{error} ({_place(part, word.start())})") from error
            lines = "\n" * part.count("\n", begin, end)
            pieces += [part[done:begin], replacement, lines]
            done = end
        pieces.append(part[done:])
    if alignment > _LARGEST_ALIGNMENT:
        raise NotEmulated(f"dynamic shared memory aligned to {alignment} bytes; at most {_LARGEST_ALIGNMENT}")
    return Translated("".join(pieces), alignment)
