"""Reading what a shared object links to, and writing a shared object whose functions all return null.

Source of the formats: System V ABI, "Object Files" and "Program Loading and Dynamic Linking" (ELF-64), and its
supplements for x86-64 and AArch64. Only what 64-bit little-endian Linux needs.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trtforge.bindings.errors import ForgeError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")

_SHARED_OBJECT, _CURRENT_VERSION = 3, 1
_LOAD, _DYNAMIC_SEGMENT, _STACK = 1, 2, 0x6474E551
_READ, _WRITE, _EXECUTE = 4, 2, 1
_SECTION_DYNAMIC, _SECTION_DYNSYM, _SECTION_VERSYM = 6, 11, 0x6FFFFFFF
_NEEDED, _HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 1, 4, 5, 6, 10, 11, 14
_GLOBAL_FUNCTION = (1 << 4) | 2
_PAGE = 0x10000

#: Machine code of ``return 0`` by e_machine.
_RETURN_NULL = {
    62: bytes.fromhex("31c0c3"),  # x86-64: xor eax, eax; ret
    183: bytes.fromhex("e0031faac0035fd6"),  # AArch64: mov x0, xzr; ret
}


@dataclass(frozen=True)
class Links:
    """What a shared object asks of others: library names, and strong undefined symbols without a version."""

    machine: int
    needed: tuple[str, ...]
    undefined: tuple[str, ...]


def _text(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()


def links(path: Path) -> Links:
    """Read a shared object. Raises ForgeError when it is no 64-bit little-endian ELF file."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ForgeError(f"{path} is not a 64-bit little-endian ELF file; stand-ins exist for Linux only")
    header = _HEADER.unpack_from(data)
    machine, sections_at, size, count = header[2], header[6], header[11], header[12]
    sections = [_SECTION.unpack_from(data, sections_at + i * size) for i in range(count)]

    def body(section: tuple[int, ...]) -> bytes:
        return data[section[4] : section[4] + section[5]]

    needed: list[str] = []
    undefined: list[str] = []
    versions = next((body(s) for s in sections if s[1] == _SECTION_VERSYM), b"")
    for section in sections:
        if section[1] == _SECTION_DYNAMIC:
            names = body(sections[section[6]])
            needed += [_text(names, value) for tag, value in _DYNAMIC.iter_unpack(body(section)) if tag == _NEEDED]
        elif section[1] == _SECTION_DYNSYM:
            names = body(sections[section[6]])
            for index, (name, info, _, home, _, _) in enumerate(_SYMBOL.iter_unpack(body(section))):
                version = struct.unpack_from("<H", versions, 2 * index)[0] if versions else 0
                if home == 0 and info >> 4 == 1 and version <= 1:
                    undefined.append(_text(names, name))
    return Links(machine, tuple(needed), tuple(undefined))


def null_library(machine: int, soname: str, functions: Sequence[str]) -> bytes:
    """A shared object named ``soname`` that exports ``functions``, each of which returns a null pointer.

    One read-execute segment holds symbol, hash and string tables and the code; one writable segment holds the
    dynamic section, which the loader edits. Raises ForgeError for a machine without known code.
    """
    if machine not in _RETURN_NULL:
        raise ForgeError(f"no stand-in code is known for ELF machine {machine}; known: x86-64 and AArch64")
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in (*functions, soname))

    def offset_of(name: str) -> int:
        return strings.index(b"\0" + name.encode() + b"\0") + 1

    count = len(functions) + 1
    symbols_at = _HEADER.size + 4 * _PROGRAM.size
    hash_at = symbols_at + count * _SYMBOL.size
    chain = [*range(2, count), 0]  # one bucket: every lookup walks the whole list
    table = struct.pack(f"<{3 + count}I", 1, count, 1 if functions else 0, 0, *chain[: count - 1])
    strings_at = hash_at + len(table)
    code_at = -(-(strings_at + len(strings)) // 16) * 16
    code = _RETURN_NULL[machine]
    dynamic_at = -(-(code_at + len(code)) // 16) * 16
    symbols = _SYMBOL.pack(0, 0, 0, 0, 0, 0) + b"".join(
        _SYMBOL.pack(offset_of(name), _GLOBAL_FUNCTION, 0, 1, code_at, len(code)) for name in functions
    )
    entries = [
        (_SONAME, offset_of(soname)),
        (_HASH, hash_at),
        (_STRTAB, strings_at),
        (_SYMTAB, symbols_at),
        (_STRSZ, len(strings)),
        (_SYMENT, _SYMBOL.size),
        (0, 0),
    ]
    dynamic = b"".join(_DYNAMIC.pack(*entry) for entry in entries)
    mapped = dynamic_at + _PAGE  # same place in the page as in the file, one page further in memory
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    image = _HEADER.pack(
        *(identity, _SHARED_OBJECT, machine, _CURRENT_VERSION, 0, _HEADER.size, 0, 0),
        *(_HEADER.size, _PROGRAM.size, 4, 0, 0, 0),
    )
    size = len(dynamic)
    image += _PROGRAM.pack(_LOAD, _READ | _EXECUTE, 0, 0, 0, dynamic_at, dynamic_at, _PAGE)
    image += _PROGRAM.pack(_LOAD, _READ | _WRITE, dynamic_at, mapped, mapped, size, size, _PAGE)
    image += _PROGRAM.pack(_DYNAMIC_SEGMENT, _READ | _WRITE, dynamic_at, mapped, mapped, size, size, 8)
    image += _PROGRAM.pack(_STACK, _READ | _WRITE, 0, 0, 0, 0, 0, 16)
    image += symbols + table + strings
    return (image.ljust(code_at, b"\0") + code).ljust(dynamic_at, b"\0") + dynamic
